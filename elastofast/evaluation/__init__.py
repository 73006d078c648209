"""Comparing methods on maps whose truth is known: the experiment, its scenarios, results, report."""
