import subprocess
import sys


def test_threads_follow_torch_and_leave_its_number_alone():
    """In a process of its own: numba starts its threads once, and on OpenMP sets torch's then."""
    program = (
        "import torch; torch.set_num_threads(1);"
        "from recbole_hydra.ops.numba_support import use_torch_threads; import numba;"
        "print(use_torch_threads(), torch.get_num_threads(), numba.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.split() == [b"1", b"1", b"1"]
