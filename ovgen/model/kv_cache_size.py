"""How large a KV cache is."""

from __future__ import annotations

from collections.abc import Sequence

from ovgen.engine_config import EngineConfig
from ovgen.errors import ConfigError
from ovgen.model.kv_cache import BlockLayout, block_size, bytes_per_block
from ovgen.model.memory import available_memory

# Where no size is asked for: so many full contexts, but at most this part of what memory there is.
_NUM_CONTEXTS = 8
_SHARE = 0.5
_LONG_CONTEXT = 32_768  # contexts beyond this are seldom full


def kv_cache_blocks(
    layouts: Sequence[BlockLayout], config: EngineConfig, context_length: int
) -> int:
    """Blocks of the KV cache: as many as are asked for, or as seem sensible.

    Raises:
        ConfigError: fewer than one.
    """
    size, num_bytes = block_size(layouts), bytes_per_block(layouts)
    if config.kv_cache_tokens is not None:
        return -(-config.kv_cache_tokens // size)
    if config.kv_cache_size is not None:
        number = int(config.kv_cache_size * 1e9 / num_bytes)
        if number < 1:
            raise ConfigError(
                f"kv_cache_size is {config.kv_cache_size} GB; one block of {size} tokens takes "
                f"{num_bytes / 1e9:.3g} GB"
            )
        return number
    wanted = _NUM_CONTEXTS * min(context_length, _LONG_CONTEXT) // size
    return max(1, min(wanted, int(_SHARE * available_memory() / num_bytes)))
