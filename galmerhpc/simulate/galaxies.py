"""Galaxy models and their realisation as particles in equilibrium."""

from enum import IntEnum


class Component(IntEnum):
    """What a particle is part of."""

    HALO = 0
    BULGE = 1
    STARS = 2
    GAS = 3
