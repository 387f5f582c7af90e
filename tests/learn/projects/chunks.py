"""While somebody is being answered, no step is longer than people notice; otherwise as large as there is work."""


def budget(num_decoding, num_waiting_tokens):
    return 2048 if num_decoding == 0 else 280
