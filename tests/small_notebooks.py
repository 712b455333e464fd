"""A notebook of two cells, as the tests of parameters and of input hashes need it."""

import nbformat

V4 = nbformat.v4
PARAMETERS = (
    'arch = "llava"\nout_dir = ""\nseed = 0\nquick = False\nrate = 1e-3\nlayers = [1, 2]\nspan = None'
)


def notebook(parameters=PARAMETERS, code="import vlalign_utils.inference.progress"):
    tagged = V4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return V4.new_notebook(cells=[tagged, V4.new_code_cell(code)])
