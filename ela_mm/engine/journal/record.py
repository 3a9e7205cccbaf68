"""The machine-readable record of every decision of a run."""
import json
import os
import os.path as osp
import re
import tempfile

FILE_NAME = 'ela_decisions.json'
FORMAT = 1


def write_whole(text: str, path: str) -> None:
    """Replace a file, whole or not at all."""
    folder = osp.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix='.tmp')
    try:
        with os.fdopen(handle, 'w') as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp keeps it to its owner
        os.replace(temporary, path)
    except OSError:  # such as a full disk
        os.remove(temporary)
        raise


def write_record(record: dict, folder: str) -> None:
    """Replace the record of a run.

    Args:
        record (dict): Anything that JSON holds; infinities and NaN are not.
        folder (str): The run's work dir.
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    # Lists of numbers on one line each. Strings hold no line breaks in JSON.
    text = re.sub(r'\[\n[-+.,\s\w]*?\]',
                  lambda numbers: ' '.join(numbers[0].split()), text)
    write_whole(text, osp.join(folder, FILE_NAME))


def read_record(folder: str) -> dict:
    """Read the record of a run.

    Args:
        folder (str): The run's work dir.

    Returns:
        dict: ``layers``, ``windows``, ``criterion``, ``skip`` and
        ``decisions``, one per window so far; see docs/record.md.

    Raises:
        FileNotFoundError: If the run has no record.
    """
    path = osp.join(folder, FILE_NAME)
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'no {FILE_NAME} in {folder!r}: expected the work dir of a run '
            'that was trained with ELAPruneHook')
    with open(path) as file:
        return json.load(file)
