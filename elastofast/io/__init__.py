"""Files: measurements and modulus maps in elastofast's own layout, and measurements in files of other programs."""

from .atomic import write_atomically
from .modulus import load_modulus, save_modulus

__all__ = ["load_modulus", "save_modulus", "write_atomically"]
