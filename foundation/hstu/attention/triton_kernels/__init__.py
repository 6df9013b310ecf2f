"""Triton kernels of HSTU attention; :mod:`foundation.hstu.attention.triton_backend` launches them.

``blocks`` says which blocks of keys and queries meet and who sees whom inside one, ``scores`` turns products into
scores and their activation; ``forward``, ``backward`` and ``bias`` hold the kernels, ``tuning`` the block sizes to try,
``interpreter`` a repair of Triton's interpreter.
"""
