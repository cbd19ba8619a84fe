"""The processor that a measurement was made on."""
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, as the system tells it."""
    told = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in told.read_text().splitlines()
             if line.startswith("model name")] if told.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
