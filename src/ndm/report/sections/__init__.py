"""The sections of a report, one a file, each with a function ``section`` from what was found to what is shown."""
