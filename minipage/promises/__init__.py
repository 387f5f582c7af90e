"""What block pools, block tables, prefix caches and schedulers promise, whoever wrote them: minipage, or a learner.

memory_machine       pools and tables against a dictionary, under random programs
prefix_machine       and with a prefix cache, and a second pool to swap to
scheduler_machine    schedulers under random traffic, with fake_engine in place of a model; plan_checks says what each
                     plan has to keep to
scheduling_examples  what examples of schedulers need: a request, a step
by_the_paper         the scheduler that lessons 6 and 9 rebuild

The tests of the heart and the graders of minipage.learn both import from here, and nothing here knows of either. It
needs hypothesis.
"""
