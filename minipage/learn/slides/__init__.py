"""`learn slides`: the pictures of every story, and a deck for the lecture of INSTRUCTORS.md, which needs no network."""
