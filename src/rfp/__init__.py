"""rfp: unpaired image translation by rectified flow (Liu, Gong, Liu 2022, arXiv:2209.03003, section 5.3).

The packages form one line of arrows, `cli → export → train → runtime`; an arrow means "may import".
"""

__version__ = "0.1.0"
