"""What came after the last time that these tokens were seen (prompt lookup)."""


def propose(token_ids):
    for length in (3, 2, 1):
        end = token_ids[-length:]
        for start in range(len(token_ids) - length - 1, -1, -1):
            if token_ids[start : start + length] == end:
                return token_ids[start + length : start + length + 4]
    return []
