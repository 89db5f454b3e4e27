"""OpenVINO's errors in our words."""

from __future__ import annotations

from ovgen.errors import DeviceError


def device_error(exc: RuntimeError) -> DeviceError:
    """What OpenVINO says of a step that failed."""
    return DeviceError(f"the device failed to compute a step: {first_line(exc)}")


def first_line(exc: BaseException) -> str:
    """The line of an OpenVINO error that says what is wrong: the last but for empty ones."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or ["unknown error"])[-1]
