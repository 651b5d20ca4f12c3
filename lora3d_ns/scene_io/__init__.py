"""On disk: `structures` says how one file holds them, `stage_cache` which are kept, `scenes` what users get."""
