"""Finding API keys. Where they are looked for stands in one place, so that an error can name every place."""
