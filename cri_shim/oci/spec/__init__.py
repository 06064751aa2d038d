"""Pure: CRI configuration in, runtime-spec out."""
