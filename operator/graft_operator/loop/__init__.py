"""Events in, passes over pools, effects out."""
