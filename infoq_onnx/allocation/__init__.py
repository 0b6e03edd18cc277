"""Stage 5: choose a bit-width for every unit from scores and budgets, exactly.

`costs` counts costs, `bounds` parses budgets and pins, `program` turns them and the scores into arrays, `solvers` solve
the program, and `solve` combines these steps. The package only needs a `schema.Network`, not the model.
"""
