"""For instructors: many folders graded at once, what is alike in them, pages, and the services where classes live."""
