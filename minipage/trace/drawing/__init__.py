"""How a frame is drawn: in a terminal, as a page for a browser, as files.

terminal.py       the whole picture in a terminal, made of
request_lines.py  a request with its blocks,
pool_lines.py     the physical memory,
lane_lines.py     memories side by side,
walk_lines.py     one attention call from inside
glyphs.py         symbols, letters, colours
html.py           a page; viewer.html, viewer.css and three scripts are its parts
exports.py        pages, pictures, terminal recordings, timelines
"""
