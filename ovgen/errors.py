"""Every error ovgen raises on purpose. The CLI prints any of them as one line and exits 1.

    OvgenError
    ├── ConfigError (ValueError)      an option that is unknown, out of range or without effect
    ├── RequestError (ValueError)     a prompt or a chat that cannot be served
    │   └── TemplateError             a chat template that is broken, unsafe or refuses its messages
    ├── QueueFullError                as many requests wait as may; try again later
    ├── ModelError                    a model's files cannot be used
    │   ├── ModelNotFoundError        no such alias, file, folder or repository
    │   ├── ModelFormatError          a file is damaged, truncated or not what its name says
    │   └── UnsupportedModelError     a sound file, of a kind that ovgen does not know
    ├── DeviceError                   OpenVINO cannot use the device or its properties
    ├── DownloadError                 a source could not be reached or gave the wrong bytes
    ├── StorageError                  a disk is full, read-only or not permitted
    └── ClosedError                   the object was closed before this call

A message names the thing, the value given, the allowed range and what to do. Errors of libraries
are mapped once, where they come up, with ``raise ... from exc``.
"""

from __future__ import annotations


class OvgenError(Exception):
    """Base of all errors that ovgen raises on purpose."""


class ConfigError(OvgenError, ValueError):
    """An option is unknown, out of range, or would have no effect."""


class RequestError(OvgenError, ValueError):
    """A prompt or a chat cannot be served."""


class TemplateError(RequestError):
    """A chat template is broken, unsafe, or refuses the messages it was given."""


class QueueFullError(OvgenError):
    """As many requests wait as ``max_waiting_requests`` allows; try again later."""


class ModelError(OvgenError):
    """A model's files cannot be used."""


class ModelNotFoundError(ModelError):
    """There is no such alias, file, folder or repository."""


class ModelFormatError(ModelError):
    """A file is damaged, truncated, or not what its name says."""


class UnsupportedModelError(ModelError):
    """The file is sound, but of a kind that ovgen does not know."""


class DeviceError(OvgenError):
    """OpenVINO cannot use the device, or refuses its properties."""


class DownloadError(OvgenError):
    """A source could not be reached, or gave bytes that are not the expected ones."""


class StorageError(OvgenError):
    """A disk is full, read-only, or may not be written."""


class ClosedError(OvgenError):
    """The object was closed before this call."""
