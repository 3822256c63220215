"""The paper and its neighbours: pure functions over arrays, which see no file and no network."""
