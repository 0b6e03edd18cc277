"""Stage 5: from scores and budgets to a bit-width for every unit, exactly.

`costs` counts, `bounds` reads budgets and pins, `program` turns them and the scores into arrays, `solvers` solve those,
`solve` joins it all. Nothing here knows of models: a `schema.Network` is all there is.
"""
