"""What tests of several subjects share; no test file imports another."""
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
