"""Folders and settings as users have them, some of which cannot work."""
import pytest
from support.toy import toy_config

from ela_mm.apis.launch import build_runner
from ela_mm.errors import UsageError


@pytest.mark.parametrize('place, why', [
    ('file', 'File exists'), ('file/below', 'Not a directory')])
def test_a_work_dir_that_cannot_be_written_to_is_named(tmp_path, place, why):
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match=f"{place}' cannot be written to "
                                         fr'\({why}\).*--work-dir'):
        build_runner(toy_config(tmp_path / place))
