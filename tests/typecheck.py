"""What jaxtyping's import hook checks annotations with, under test alone.

An int is taken where a float is asked for, as PEP 484 has it.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
