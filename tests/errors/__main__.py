"""`python -m tests.errors` writes the golden file of errors anew, and says which codes came and went."""

from tests.errors.golden import FILE, read, renewed, text_of

before = read()
after = renewed(before)
FILE.write_text(text_of(after.values()), encoding="utf-8")
for code in sorted(before.keys() ^ after.keys()):
    print("-+"[code in after], code)
