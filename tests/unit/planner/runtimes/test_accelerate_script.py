"""What the emitted Accelerate script relies on inside Accelerate."""

import inspect
from importlib import resources

from accelerate.utils import modeling


def test_accelerate_empties_the_allocator_where_the_script_stops_it() -> None:
    """A release that renames it would make `keep_pages` do nothing, and batches a third slower."""
    script = resources.files("planner.runtimes.accelerate").joinpath("generate.py").read_text()
    assert "modeling.clear_device_cache = " in script
    assert callable(modeling.clear_device_cache)
    assert "clear_device_cache()" in inspect.getsource(modeling.set_module_tensor_to_device)
