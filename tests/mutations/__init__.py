"""The rules of the verdicts, each broken on purpose: a test must fail for every one."""
