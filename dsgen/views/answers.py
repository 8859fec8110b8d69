"""The questions that a data sheet answers, answered in plain words for one store: only what holds for it is said.

The questions follow "Datasheets for Datasets" (Gebru and others, 2018), as far as a store can answer them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dsgen.corpus.labels import COMPOSED
from dsgen.corpus.placement import FLOOR
from dsgen.corpus.plan import SPLITS, UNUSED
from dsgen.corpus.rooms import BUNDLED, FILE
from dsgen.store.reader import Store
from dsgen.views.provenance import Provenance, is_bundled_network
from dsgen.views.survey import Survey

TO_FILL_IN = "To be filled in by whoever passes this data set on:"
_FIELDS = {
    "image": "the picture, RGB, 8 bits a channel",
    "mask": "a mask, 255 where a foreground is and 0 elsewhere",
    "depth": "depth along the optical axis, in whole millimetres, 0 where there is none",
    "instance": "the number of the person or thing that is seen at each pixel, 0 for none",
    "background": "the background alone",
}
_FUNCTION = "function:"


@dataclass(frozen=True)
class Answer:
    """A question and its answer, a paragraph a string."""

    question: str
    paragraphs: tuple[str, ...]


class Facts:
    """What the answers depend on, by name."""

    def __init__(self, store: Store, survey: Survey, provenance: Provenance):
        self.store, self.survey, self.provenance = store, survey, provenance
        self.made_from: dict[str, Any] = store.index["made_from"]
        self.parameters: dict[str, Any] = self.made_from.get("parameters", {})
        self.composed_pictures = "parameters" in self.made_from
        self.on_floor = self.parameters.get("place") == FLOOR
        labels = store.index.get("depth") or {} if "depth" in store.fields else {}
        self.labels: dict[str, Any] = labels
        self.model = str(labels.get("model", ""))
        self.composed_depth = self.model == COMPOSED
        self.estimated_depth = bool(labels) and self.composed_pictures and not self.composed_depth
        self.rooms: dict[str, int] = self.made_from.get("rooms") or {}
        self.estimated_rooms = sum(count for name, count in self.rooms.items() if name not in (BUNDLED, FILE))
        self.splits = {name: store.splits.get(name, 0) for name in SPLITS}
        self.used = {name: rows for name, rows in self.splits.items() if rows and name != SPLITS[UNUSED]}


def answer_all(store: Store, survey: Survey, provenance: Provenance) -> tuple[Answer, ...]:
    """Answer the questions of a data sheet for a store."""
    facts = Facts(store, survey, provenance)
    answers = {
        "What is in it?": _composition(facts),
        "Where are the pictures from?": _collection(facts),
        "How were the masks made?": _masks(facts),
        "How was the depth made?": _depth(facts),
        "How is it split?": _splits(facts),
        "Does it show real people?": _people(facts),
        "What is it suited for?": _suited(facts),
        "What is it not suited for?": _unsuitable(facts),
        "Which limits are known?": _limits(facts),
        "Who may use it, and for what?": _licence(facts),
    }
    return tuple(Answer(question, tuple(text)) for question, text in answers.items())


def _composition(facts: Facts) -> Iterable[str]:
    store, provenance = facts.store, facts.provenance
    side = f"{store.size} x {store.size} pixels"
    if facts.composed_pictures:
        backgrounds, foregrounds = len(provenance.backgrounds), len(provenance.foregrounds)
        yield (
            f"{_count(store.rows, 'composite')} of {side}. In each, one or more of {_count(foregrounds, 'foreground')} "
            f"are pasted on one of {_count(backgrounds, 'background')}."
            if facts.store.people > 1
            else f"{_count(store.rows, 'composite')} of {side}. In each, one of {_count(foregrounds, 'foreground')} is "
            f"pasted on one of {_count(backgrounds, 'background')}."
        )
    else:
        yield (
            f"{_count(store.rows, 'picture')} of {side}: the centre square of each picture that was packed, scaled. "
            "Nothing was pasted into them."
        )
    yield "A row has " + "; ".join(_FIELDS[name] for name in store.fields if name in _FIELDS) + "."


def _collection(facts: Facts) -> Iterable[str]:
    provenance = facts.provenance
    if not facts.composed_pictures:
        yield "They were packed from files and are not known to dsgen."
    for kind, pictures in (("backgrounds", provenance.backgrounds), ("foregrounds", provenance.foregrounds)):
        bundled = sum(picture.bundled for picture in pictures)
        if bundled:
            yield (
                f"{_of(bundled, len(pictures), kind)} bundled with dsgen. Those are renderings of 3D models; none is a "
                "photograph."
            )
        if bundled < len(pictures):
            yield f"{_of(len(pictures) - bundled, len(pictures), kind)} not dsgen's and not known to it."
    if provenance.own:
        yield f"{TO_FILL_IN} who made or collected these pictures, when, where and how, and whether those shown agreed."


def _masks(facts: Facts) -> Iterable[str]:
    if "mask" not in facts.store.fields:
        yield "There are none."
    elif facts.composed_pictures:
        yield (
            "They follow from the composition: a pixel belongs to the mask where the pasted foreground is at least "
            "half opaque. Nobody drew them by hand. They are as good as the transparency of the foregrounds."
        )
        if facts.on_floor:
            yield "Where something in the room is nearer than a person, it hides the person, and the mask ends there."
    else:
        yield "They were packed from files, cut and scaled like the pictures, and then cut at half."


def _depth(facts: Facts) -> Iterable[str]:
    if "depth" not in facts.store.fields:
        yield "There is none."
        return
    if facts.composed_depth:
        yield (
            "It follows from the composition: it is the depth of the background, and where a person is seen the "
            "distance of that person, one value for the whole person."
        )
        at_random = not facts.on_floor or (facts.survey.people is not None and facts.survey.people.unknown)
        if at_random:
            where = "In backgrounds without a floor people" if facts.on_floor else "The people"
            yield (
                f"{where} are at random places and stand nowhere. Their distance is what their height in the picture "
                "implies, but never behind what they cover."
            )
        yield from _rooms(facts)
    elif not facts.composed_pictures:
        unit = facts.labels.get("png_unit_m")
        told = f" In PNG files 1 was taken for {unit:g} m." if isinstance(unit, float | int) else ""
        yield f"It was packed from files, scaled to the nearest pixel.{told} How it was measured is not known to dsgen."
    else:
        yield f"It was not measured. {_estimator(facts)} estimated it from each composite."
        reference = facts.labels.get("metric_reference")
        if reference:
            yield "That network answers relative depth; a metric network gave it its metres."
    if facts.store.index.get("left_out") or facts.made_from.get("max_flip_error") is not None:
        yield (
            f"{_count(facts.store.index.get('left_out') or 0, 'row')} left the splits because the depth of the row and "
            f"of its mirror image disagreed by more than {facts.made_from.get('max_flip_error')}."
        )


def _rooms(facts: Facts) -> Iterable[str]:
    for source, count in sorted(facts.rooms.items()):
        of = f"The depth of {_count(count, 'background')}"
        if source == BUNDLED:
            yield f"{of} is exact: it was rendered with the picture."
        elif source == FILE:
            yield f"{of} came as files; how it was measured is not known to dsgen."
        else:
            yield f"{of} was estimated from the picture by {source}, so it may be wrong by a tenth or more."


def _estimator(facts: Facts) -> str:
    if facts.model.startswith(_FUNCTION):
        return f"A Python function, {facts.model.removeprefix(_FUNCTION)},"
    if is_bundled_network(str(facts.labels.get("weights_sha256", ""))):
        return f"The network that dsgen bundles ({facts.model})"
    return f"The network {facts.model}"


def _splits(facts: Facts) -> Iterable[str]:
    survey = facts.survey
    unused = facts.splits[SPLITS[UNUSED]]
    told = ", ".join(f"{rows:,} {name}" for name, rows in facts.splits.items() if rows)
    yield f"Rows: {told}."
    if not facts.composed_pictures:
        yield (
            "Each picture is in one split, drawn at random by its name. Pictures of the same scene may be in different "
            "splits; dsgen does not look for them."
        )
        return
    kinds = {"background": survey.backgrounds, "foreground": survey.foregrounds}
    shared = {kind: use.shared for kind, use in kinds.items() if use is not None}
    apart = [kind for kind, count in shared.items() if not count]
    if len(facts.used) < 2:
        yield "Only one of train, validation and test has rows, so nothing is held out."
    elif apart:
        yield f"No {' and no '.join(apart)} is in more than one of train, validation and test. All rows were looked at."
    if len(facts.used) > 1:
        for kind, count in shared.items():
            if count:
                yield f"{_count(count, kind)} {_are(count)} in more than one of train, validation and test."
    if facts.provenance.poses and len(facts.used) > 1:
        poses = facts.provenance.poses
        yield (
            f"{_count(poses, 'held-out foreground')} {'shows' if poses == 1 else 'show'} a figure that training shows "
            "in another pose; scores are then not those of unseen figures."
        )
    if unused:
        left_out = facts.store.index.get("left_out") or 0
        reasons = [
            *(["their pictures are in different splits"] if unused > left_out else []),
            *(["their depth is doubtful"] if left_out else []),
        ]
        yield (
            f"{_count(unused, 'row')} {_are(unused)} unused: {', or '.join(reasons)}. They are neither trained on nor "
            "scored."
        )


def _people(facts: Facts) -> Iterable[str]:
    provenance = facts.provenance
    figures = sum(picture.bundled for picture in provenance.foregrounds)
    if figures:
        yield (
            f"{_of(figures, len(provenance.foregrounds), 'foregrounds')} bundled with dsgen: rendered figures, not "
            "real people."
        )
    if provenance.own:
        yield f"{TO_FILL_IN} whether the other pictures show real people, and whether those agreed."


def _suited(facts: Facts) -> Iterable[str]:
    fields, store = facts.store.fields, facts.store
    tasks = []
    if "mask" in fields:
        tasks.append("segmenting what is in the foreground")
    if "instance" in fields and store.people > 1:
        tasks.append("telling several people apart")
    if "depth" in fields:
        tasks.append("estimating depth from one picture")
    if tasks:
        yield f"Training networks, and comparing them on equal terms: {' and '.join(tasks)}."
    else:
        yield "Work that needs pictures without labels."
    if facts.composed_pictures:
        yield "What a network has learnt from it should be tested on real pictures before it is relied on."


def _unsuitable(facts: Facts) -> Iterable[str]:
    yield (
        "Scores on it say how well a network does on composites like these, and nothing of real pictures."
        if facts.composed_pictures
        else "Scores on it say how well a network does on pictures like these; on others it may do worse."
    )
    if facts.estimated_depth or facts.estimated_rooms:
        yield "It is no benchmark of metric depth: to agree with it is to agree with another network's estimates."
    if facts.composed_pictures and not facts.on_floor:
        yield (
            "It does not teach where in a room people are, or how large: they are pasted at random places, whatever "
            "the room."
        )
    if facts.composed_pictures or facts.provenance.own:
        yield "It is not made for recognising, identifying or judging persons."


def _limits(facts: Facts) -> Iterable[str]:
    parameters, survey = facts.parameters, facts.survey
    if facts.composed_pictures:
        light = "Light and camera of foreground and background need not match"
        if parameters.get("match_colours"):
            light += ", though colours were matched in part"
        yield f"The pictures are composites: foregrounds are flat cut-outs. {light}."
        if not parameters.get("shadow"):
            yield "Foregrounds throw no shadows."
        else:
            yield "The only shadows that people throw are drawn on the floor where they stand."
    if facts.composed_depth:
        yield "A person has one distance, so arms, legs and bodies have no relief in depth."
    if facts.estimated_depth:
        yield f"Depth is estimated: its errors are those of {facts.model}, at edges and on unusual rooms above all."
        if is_bundled_network(str(facts.labels.get("weights_sha256", ""))):
            yield (
                "The bundled network learnt depth on rendered rooms alone. Within 25 % of the truth are 87 % of pixels "
                "in unseen rendered rooms and 44 % in real ones."
            )
    if facts.on_floor and not facts.rooms:
        yield "Distances of people are as right as the depth of the backgrounds was, of which the store says nothing."
    if facts.estimated_rooms:
        yield "Where the depth of a background is estimated, distances and sizes of people are only roughly right."
    if facts.provenance.two_people:
        two = facts.provenance.two_people
        where = ", at the distance of the nearer one" if facts.on_floor else ""
        shows = "shows" if two == 1 else "show"
        yield f"{_count(two, 'foreground')} {shows} two people, who are labelled as one{where}."
    if survey.masks is not None and survey.masks.empty:
        empty, rows = survey.masks.empty, len(survey.sampled)
        yield f"{empty:,} of {rows:,} rows looked at have an empty mask."
    if survey.depths is not None and survey.depths.share_without:
        yield f"{survey.depths.share_without:.2%} of the pixels looked at have no depth."
    if facts.composed_pictures and survey.backgrounds is not None:
        yield (
            f"There are no more than {_count(len(survey.backgrounds.names), 'background')} and "
            f"{_count(len(facts.provenance.foregrounds), 'foreground')}, so rows resemble each other."
        )
    if not facts.composed_pictures:
        yield "dsgen knows no others: it did not make these pictures."


def _licence(facts: Facts) -> Iterable[str]:
    provenance, own = facts.provenance, facts.provenance.own
    if provenance.bundled:
        shown = "people" if any(picture.bundled for picture in provenance.foregrounds) else "models under CC BY 3.0"
        yield (
            "The bundled pictures are under CC0, CC BY 3.0 and Apache-2.0. Whoever passes on pictures that show the "
            f"bundled {shown} must name their authors, as below."
        )
    if own:
        yield f"{TO_FILL_IN} licence and authors of the {_count(own, 'picture')} that {_are(own)} not bundled."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _of(number: int, total: int, nouns: str) -> str:
    """Begin a sentence about some of the pictures: `All 3 backgrounds are`, `2 of 3 backgrounds are`."""
    if total == 1:
        return f"The one {nouns[:-1]} is"
    return f"All {total:,} {nouns} are" if number == total else f"{number:,} of {total:,} {nouns} {_are(number)}"
