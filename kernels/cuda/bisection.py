"""Places in what is sorted, by bisection."""

from .jit import inner_kernel

__all__ = ["first_from", "group_of"]


@inner_kernel
def first_from(numbers, start, stop, least):
    """First of the places ``start:stop`` whose number is at least as large; `stop` if none is."""
    while start < stop:
        middle = (start + stop) >> 1
        if numbers[middle] < least:
            start = middle + 1
        else:
            stop = middle
    return start


@inner_kernel
def group_of(pointers, first, last, place):
    """The group from `first` on and below `last` that has a place."""
    while last - first > 1:
        middle = (first + last) >> 1
        if pointers[middle] <= place:
            first = middle
        else:
            last = middle
    return first
