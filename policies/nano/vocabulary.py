"""From a sentence to word ids: the words that a checkpoint knows, and a refusal by name of what it does not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from policies.types import VegaError, check_instruction

# Words that name nothing a robot could mix up: grammar, courtesy, manner, verbs of handling, and the scene itself.
_FILLERS = """
a an the this that these those my your our its it them they both all one ones which who whose what there here s t and or
then next after before while now first finally also so as too again once until when with without using of from to at by
for in into inside within on onto upon over atop off out up down away along across through is are be being been was were
will would can could should shall may might must do does did have has had need needs want wants like let go goes please
kindly thanks thank you i me we us robot task job pick picks take takes grab grabs get gets lift lifts fetch choose find
locate reach grasp hold bring move moves put puts place places placing placed set sets drop leave lay lays deposit
position relocate transfer carry shift stow picking taking grabbing putting moving lifting located sitting standing
lying resting positioned found make sure start proceed begin try ensure retrieve collect select pull push slide open
close shut turn switch rotate table tabletop desk floor counter surface scene workspace side spot area gripper hand arm
given specified intended desired target nearby currently just only
"""
# How something is done, as far as that leaves what is done as it is.  A list and no ending: "jelly" and "doily" end in
# "ly", and "barely" or "partly" say another thing.
_MANNERS = """
absolutely accurately actually adeptly adequately adroitly appropriately aptly attentively automatically autonomously
basically beautifully briskly calmly carefully cautiously certainly cheerfully cleanly clearly cleverly comfortably
competently completely confidently conscientiously consistently constantly continuously conveniently correctly
decisively definitely deftly deliberately delicately dexterously diligently directly discreetly easily effectively
efficiently effortlessly elegantly entirely especially evenly eventually exactly expertly faithfully finally firmly
firstly fittingly flawlessly fluidly freely fully generally gently gingerly gladly gracefully gradually happily hastily
hopefully hurriedly ideally immediately independently initially instantly intelligently judiciously kindly lastly
leisurely lightly methodically meticulously mindfully naturally neatly nicely nimbly noiselessly normally obediently
obviously optimally particularly patiently perfectly personally politely possibly precisely preferably professionally
promptly properly prudently quickly quietly rapidly readily really reliably responsibly rightly safely seamlessly
secondly securely sensibly silently simply skilfully skillfully slowly smartly smoothly softly specifically speedily
stably steadily straightforwardly subsequently successfully suitably surely swiftly systematically tenderly thirdly
thoroughly thoughtfully tidily tightly totally truly typically ultimately unhurriedly urgently usually vigilantly warily
wisely
"""


def words(text: str) -> list[str]:
    """Lower-case words of a sentence, without accents.

    In any script: what is written in another one must not pass unread beside a word that is known.
    """
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c)))


FILLERS = frozenset(words(_FILLERS + _MANNERS))


class Vocabulary:
    """The words of a checkpoint, id 0 being padding, and those among them that name things.

    Fillers it does not know are left out.  A sentence with any other unknown word is refused, and so is one that names
    no known thing: the policy could only guess what to take.
    """

    def __init__(self, known: Sequence[str], things: Sequence[str]) -> None:
        self.known, self.things = tuple(known), tuple(things)
        self._ids = {word: i for i, word in enumerate(self.known, 1)}
        self._thing_words = {word for thing in self.things for word in words(thing)}

    def __len__(self) -> int:
        return len(self.known) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the known words, in order.  Raises VegaError on an empty, endless or unanswerable instruction."""
        text = check_instruction(text)
        said = words(text)
        unknown = [word for word in said if word not in self._ids and word not in FILLERS]
        if unknown:
            raise VegaError(
                f"The instruction '{text}' names '{unknown[0]}', which this policy does not know: use one of "
                f"{', '.join(self.things)}."
            )
        found = [word for word in said if word in self._ids]
        if not self._thing_words.intersection(found):
            raise VegaError(
                f"The instruction '{text}' names nothing that this policy knows: use one of "
                f"{', '.join(self.things)}."
            )
        return [self._ids[word] for word in found]
