"""From a finished stage to a registered version, and to `@champion`."""
