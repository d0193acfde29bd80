import sys
from pathlib import Path

# `benchmarks` is a package of the checkout, not of the installation
sys.path.append(str(Path(__file__).resolve().parents[2]))
