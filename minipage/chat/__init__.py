"""`minipage chat`: a conversation with a chat model, and what the prefix cache makes of it."""
