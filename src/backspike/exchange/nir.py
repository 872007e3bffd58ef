"""`bs.nir`: networks to and from NIR files (Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9).

`write` needs the library nir (the extra `nir`); `read` needs h5py alone. `docs/nir.md` has the
equations, and what is supported, refused and guessed.
"""

from ..errors import ExchangeError as ExchangeError
from .nir_read import read as read
from .nir_write import Exported as Exported
from .nir_write import write as write
