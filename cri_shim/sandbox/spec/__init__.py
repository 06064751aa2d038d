"""Runtime-specs of pods and containers: collects facts about request, image and node for the pure builders."""
