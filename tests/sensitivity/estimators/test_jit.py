"""Compilation: late, possible without a cache, and safe from several threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from infoq_onnx.jit import compiled
from infoq_onnx.sensitivity.estimators import ksg_batch


def test_import_compiles_nothing():
    script = (
        "import infoq_onnx.sensitivity.estimators._kernels as kernels, sys\n"
        "assert not any(getattr(f, 'signatures', ()) for f in vars(kernels).values())\n"
        "assert not {'onnx', 'onnxruntime', 'torch', 'click', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_compiles_where_no_cache_can_be_kept():
    # numba finds no place for the cache of a function that has no file
    namespace: dict = {}
    exec("def double(x): return 2 * x", namespace)
    assert compiled(namespace["double"])(21) == 42


def test_callers_on_several_threads_get_what_one_gets(rng):
    X, Y = rng.standard_normal((2, 100, 16))
    expected = ksg_batch(X, Y).tobytes()
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: ksg_batch(X, Y).tobytes(), range(40))
    assert set(results) == {expected}
