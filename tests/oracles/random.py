"""Naive counter-based draws: SplitMix64's finaliser on Python integers."""

from __future__ import annotations

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def stream(seed, epoch, example):
    """One mixing per part: the key so far, XORed with the part moved by the golden ratio."""
    key = 0
    for part in (seed, epoch, example):
        key = mix(key ^ (part + GOLDEN & MASK))
    return key


def draw(key, counter, n):
    """The upper half of output `counter` of SplitMix64 seeded with `key`, scaled to [0, n)."""
    high = mix(key + counter * GOLDEN & MASK) >> 32
    return high * n >> 32
