"""Figures of a trace on axes of matplotlib, for papers. Needs the extra ``plots``, and neither torch nor mace.

All take a trace, the precisions and blocks to show, and axes to draw on; without axes they make a figure. Units stand
on every axis. Colours are those of Okabe and Ito, and cividis; a precision has the same one in all figures of a trace,
whichever are shown, and on its page. What is zero, NaN or infinite has no place on a logarithmic axis: it is left out,
and the title says how many there are. The page draws the same numbers in its own way.
"""
