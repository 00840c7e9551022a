import sys
from pathlib import Path

# The oracle and the shapes are modules beside the tests, which importlib mode leaves off the path.
sys.path.insert(0, str(Path(__file__).parent))
