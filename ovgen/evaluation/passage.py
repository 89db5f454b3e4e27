"""The text that accuracy is measured on where the user gives none: about 500 tokens of English."""

PASSAGE = """\
A public library is one of the few places in a town where nobody asks why you have come. People \
read the newspapers there, look for work, learn a language, or simply wait until the rain stops. \
The shelves are arranged so that a stranger can find a book without help: fiction by the name of \
the author, everything else by subject, with a number on the spine that tells where it belongs. \
The system most libraries use was designed in 1876, and although it has been revised more than \
twenty times, its ten main classes have stayed the same.

The work behind the desk has changed a good deal. Forty years ago a librarian typed a card for \
each new title and filed it by hand in long wooden drawers. Today the record arrives over the \
network before the book itself does, and a reader can reserve a copy from home at midnight. About \
a third of all loans are digital. Still, the number of visits in many cities is higher than it was \
before the first computers were installed, because the building offers what a screen cannot: a \
quiet table, a warm room, and someone who knows how to ask the right question.

Suppose a visitor wants to find out when her house was built. The answer may be on an old map, in \
the tax records, or in a photograph that was taken for another reason. A good librarian will not \
start with the map. She will first ask what the visitor already knows: the name of the street, the \
former owners, the shape of the roof. Each detail rules out some possibilities and suggests \
others, and after ten minutes the search has become small enough to finish in an afternoon.

None of this is free, of course. A branch with three employees costs roughly as much each year as \
one kilometre of new road, and most of the money goes into salaries, heating and repairs rather \
than books. When budgets are cut, opening hours are usually the first thing to go. Some towns have \
tried the opposite: they gave regular users a key, so that the rooms stay open until late in the \
evening with no staff at all. To everyone's surprise, very little was stolen, and the chairs were \
put back in their places more often than during the day.
"""
