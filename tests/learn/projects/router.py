"""The replica where a first token comes soonest: its queue, and what is not in its cache."""


def route(prompt, replicas):
    return min(
        range(len(replicas)), key=lambda i: replicas[i].waiting + 1.5 * (len(prompt) - replicas[i].found(prompt))
    )
