"""Changes of the operational settings: each is one version, made on the assignment queue.

A change locks every lane and writes the version's id into the lanes' rows. So no transaction of any
lane uses two versions, and no transaction that begins later uses an earlier version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import insert, update

from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.operational_settings import (
    OPERATIONAL,
    SettingChange,
    SettingValue,
    changes_rules,
    check_rules,
    first_values,
    in_force,
    misfit,
    values_of_queues,
)
from assignment_workers.assignment.settings_versions import (
    AppliedChange,
    StoredVersion,
    every,
    latest,
)
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.schema.tables import LaneTerm, SettingsVersion
from assignment_workers.settings import Settings

FIRST_BY = "sequencer"
FIRST_WHY = "the first values, from the environment and the dialer's file"
OWN_WHY = "first values of dialer queues, from the dialer's file"


def adopt(transaction: FencedTransaction, given: Settings) -> StoredVersion | None:
    """Store the first version of the operational settings, if there is none.

    Its values are those of the environment and of the dialer's file, which declares the dialer
    queues. From then on the environment's values of operational settings are ignored. `given`: the
    settings of the environment. Returns the stored version; None if a version existed.
    """
    if transaction.settings_id is not None:
        return None
    transaction.require_all_lanes()
    if latest(transaction.connection) is not None:
        return None
    values = first_values(transaction.dialer, given)
    changes = [
        AppliedChange(**each.model_dump(exclude={"value"}), before=None, after=each.value)
        for each in values
    ]
    return _store(transaction, 1, changes, values, by=FIRST_BY, why=FIRST_WHY)


def begin(transaction: FencedTransaction, given: Settings) -> StoredVersion | None:
    """Store the first values of operational settings, when a term begins.

    A term begins when a sequencer begins to lead. The dialer's file is the file that defines the
    dialer queues. If no version exists, the first version gets the values of the environment and of
    the dialer's file. Otherwise a new version adds values of the dialer's file, such as those of a
    new dialer queue. A value is added only if no version ever had a value of the same setting for
    the same dialer queue. Returns the stored version; None if there is nothing to store.
    """
    if (first := adopt(transaction, given)) is not None:
        return first
    if not _new_values(transaction):
        return None
    transaction.require_all_lanes()
    before, new = latest(transaction.connection), _new_values(transaction)
    if before is None or not new:  # another lane has stored them
        return None
    changes = [
        AppliedChange(**each.model_dump(exclude={"value"}), before=None, after=each.value)
        for each in new
    ]
    values = _sorted([*before.values, *new])
    made = _store(transaction, before.version + 1, changes, values, by=FIRST_BY, why=OWN_WHY)
    if changes_rules([each.name for each in changes]):
        entries.judge_waiting_anew(transaction)
    return made


def _new_values(transaction: FencedTransaction) -> list[SettingValue]:
    """Return the new values of operational settings in the dialer's file.

    The dialer's file is the file that defines the dialer queues. A value is new if no stored
    version ever had a value of the same setting for the same dialer queue. So all values of a new
    dialer queue are new.
    """
    own = values_of_queues(transaction.dialer)
    if not own:
        return []
    had = {
        (each.name, each.queue, each.team)
        for version in every(transaction.connection)
        for each in version.changes
    }
    return [each for each in own if each.key not in had]


def change(
    transaction: FencedTransaction,
    changes: Sequence[SettingChange],
    *,
    by: str,
    why: str,
    given: Settings,
) -> Done | Refused:
    """Store these changes as one new version of the operational settings.

    The version is in force from this commit on, in every process. If all values are in force
    already, no version is made. The answer has the number of the version in force, as
    `counts["version"]`. `by`: the operator; `why`: the reason; `given`: the settings of the
    environment, from which the first version is stored if there is none.

    Refused, with nothing changed: an unknown setting; a value that is not accepted; a value for a
    dialer queue or a team, if the setting cannot have one; a value that is changed twice; and
    values that cannot be used together.

    If a changed setting decides who may be called, users who wait because of a rule are made
    claimable, up to 5,000 in each dialer queue, and the next claim judges them by the new rules.
    The next build judges the other waiting users.
    """
    wrong = [said for each in changes if (said := misfit(each, transaction.dialer.policies))]
    named = [each.key for each in changes]
    if not wrong and len(set(named)) < len(named):
        wrong = ["a setting is changed twice in one version"]
    if wrong:
        return Refused(code=Code.MALFORMED, reason=wrong[0])
    transaction.require_all_lanes()
    before = adopt(transaction, given) or latest(transaction.connection)
    if before is None:
        raise AssertionError("a version exists once `adopt` has returned")
    values = {each.key: each for each in before.values}
    applied: list[AppliedChange] = []
    for each in changes:
        old = values.pop(each.key, None)
        was = None if old is None else old.value
        if each.value is not None:
            values[each.key] = SettingValue(**each.model_dump())
        if was != each.value:
            subject = each.model_dump(exclude={"value"})
            applied.append(AppliedChange(**subject, before=was, after=each.value))
    if not applied:
        return Done(replayed=True, counts={"version": before.version})
    kept = _sorted(values.values())
    number = before.version + 1
    known = {each.key: each.value for each in kept if each.name in OPERATIONAL}
    dialer = transaction.dialer
    if unusable := check_rules(dialer, in_force(dialer, given, number, known)):
        return Refused(code=Code.MALFORMED, reason=unusable)
    _store(transaction, number, applied, kept, by=by, why=why)
    if changes_rules([each.name for each in applied]):
        entries.judge_waiting_anew(transaction)
    return Done(counts={"version": number})


def _sorted(values: Iterable[SettingValue]) -> list[SettingValue]:
    return sorted(values, key=lambda each: (each.name, each.queue or "", each.team or ""))


def _store(
    transaction: FencedTransaction,
    number: int,
    changes: Sequence[AppliedChange],
    values: Sequence[SettingValue],
    *,
    by: str,
    why: str,
) -> StoredVersion:
    made = StoredVersion(
        version=number,
        id=transaction.new_id(),
        at=transaction.now,
        who=by,
        why=why,
        changes=list(changes),
        values=list(values),
    )
    said = made.model_dump(mode="json", include={"changes", "values"})
    transaction.connection.execute(
        insert(SettingsVersion).values(
            version=number, id=made.id, at=made.at, who=by, why=why, **said
        )
    )
    transaction.connection.execute(update(LaneTerm).values(settings_id=made.id))
    details = {"by": by, "why": why, "version": number, "changes": said["changes"]}
    transaction.record({"kind": EventKind.SETTINGS_CHANGED, "details": details})
    return made
