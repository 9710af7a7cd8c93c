"""A session: numbers, acknowledgements, what is sent again on the next link, and what is lost."""

from __future__ import annotations

import pytest

from realtime.errors import MeshError
from realtime.protocols.mesh_frames import DataReceived, ResumeReceived, ack_frame, data_header, gap_frame, resume_frame
from realtime.protocols.mesh_session import ACK_BYTES, ACK_DELAY, ACK_FRAMES, WINDOW, Lost, Session

OURS, THEIRS = 11, 22


def session(resend: int = 1 << 20, frames: int = 100) -> Session:
    return Session(OURS, resend=resend, resend_frames=frames)


def linked(**bounds: int) -> Session:
    """A session on its first link."""
    subject = session(**bounds)
    subject.resume(False)
    assert subject.on_resume(ResumeReceived(THEIRS, 0, 0, False)) is None
    return subject


def linked_again(subject: Session, received: int, *, epoch: int = THEIRS, known: int = OURS) -> Lost | None:
    """The next link, on which the peer says that it has ``received`` frames."""
    subject.detach()
    subject.resume(False)
    return subject.on_resume(ResumeReceived(epoch, known, received, False))



def test_frames_are_numbered_and_carry_what_was_received() -> None:
    subject = linked()
    assert subject.send(b"one") == data_header(1, 0, 3)
    assert subject.on_data(DataReceived(1, 1, b"theirs"), 0.0)
    assert subject.send(b"two") == data_header(2, 1, 3)


def test_what_is_sent_before_the_peer_resumed_waits_for_it() -> None:
    subject = session()
    assert subject.send(b"early") is None
    assert subject.resume(True) == resume_frame(OURS, 0, 0, True)
    assert subject.send(b"too") is None
    subject.on_resume(ResumeReceived(THEIRS, 0, 0, False))
    assert subject.behind
    assert subject.catch_up(0.0) == ([data_header(1, 0, 5), b"early", data_header(2, 0, 3), b"too"], None)
    assert not subject.behind
    assert subject.send(b"late") == data_header(3, 0, 4)


def test_only_what_the_peer_misses_is_sent_again() -> None:
    subject = linked()
    for body in (b"a", b"b", b"c"):
        subject.send(body)
    assert linked_again(subject, 2) is None
    assert subject.catch_up(0.0) == ([data_header(3, 0, 1), b"c"], None)


def test_a_resume_says_what_is_known_of_the_peer() -> None:
    subject = linked()
    subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    subject.detach()
    assert subject.resume(False) == resume_frame(OURS, THEIRS, 1, False)


@pytest.mark.parametrize(("bounds", "kept"), [({"frames": 2}, 2), ({"resend": 3 * 244}, 3)], ids=["number", "bytes"])
def test_what_the_buffer_could_not_keep_is_a_gap(bounds: dict[str, int], kept: int) -> None:
    subject = linked(**bounds)
    for _ in range(10):
        subject.send(b"x" * 100)
    linked_again(subject, 4)
    pieces, lost = subject.catch_up(0.0)
    assert lost == Lost(5, 10 - kept, 6 - kept)
    assert pieces[0] == gap_frame(5, 6 - kept)
    assert pieces[1::2] == [data_header(10 - kept + number + 1, 0, 100) for number in range(kept)]


def test_a_gap_that_the_peer_did_not_hear_of_is_said_again_and_counted_once() -> None:
    subject = linked(frames=1)
    for _ in range(5):
        subject.send(b"x")
    linked_again(subject, 0)
    assert subject.catch_up(0.0)[1] == Lost(1, 4, 4)
    subject.send(b"y")
    linked_again(subject, 0)
    pieces, lost = subject.catch_up(0.0)
    assert pieces[0] == gap_frame(1, 5)
    assert lost == Lost(1, 5, 1)


def test_acks_that_crossed_with_a_gap_are_taken() -> None:
    subject = linked(frames=1)
    for _ in range(5):
        subject.send(b"x")
    linked_again(subject, 2)
    subject.catch_up(0.0)
    subject.on_ack(2)
    subject.on_ack(5)
    assert subject.kept == 0


def test_a_peer_that_began_anew_gets_everything_from_one_and_the_rest_is_lost() -> None:
    subject = linked()
    for body in (b"a", b"b", b"c"):
        subject.send(body)
    subject.on_ack(1)
    subject.on_data(DataReceived(1, 1, b"x"), 0.0)
    assert linked_again(subject, 0, epoch=THEIRS + 1, known=0) == Lost(2, 3, 2)
    assert subject.received == 0
    assert subject.catch_up(0.0) == ([], None)
    assert subject.send(b"d") == data_header(1, 0, 1)


def test_a_peer_that_never_heard_our_resume_is_no_new_one() -> None:
    subject = linked()
    subject.send(b"a")
    assert linked_again(subject, 0, known=0) is None
    assert subject.catch_up(0.0) == ([data_header(1, 0, 1), b"a"], None)


def test_after_a_node_was_given_up_its_numbers_go_on() -> None:
    subject = linked()
    subject.send(b"a")
    subject.send(b"b")
    subject.detach()
    subject.abandon()
    assert subject.kept == 0
    linked_again(subject, 1)
    assert subject.catch_up(0.0) == ([gap_frame(2, 1)], Lost(2, 2, 1))
    assert subject.send(b"c") == data_header(3, 0, 1)


def test_much_that_is_sent_again_goes_in_windows_and_new_frames_wait_behind_it() -> None:
    subject = linked(resend=4 * WINDOW, frames=100)
    body = b"x" * (WINDOW // 2)
    for _ in range(4):
        subject.send(body)
    linked_again(subject, 0)
    assert subject.catch_up(0.0)[0][::2] == [data_header(number, 0, len(body)) for number in (1, 2)]
    assert subject.behind
    assert subject.send(b"new") is None
    assert subject.catch_up(0.0) == ([], None)
    subject.on_ack(2)
    assert len(subject.catch_up(0.0)[0]) == 4
    subject.on_ack(4)
    assert subject.catch_up(0.0) == ([data_header(5, 0, 3), b"new"], None)


def test_what_is_forgotten_while_it_waits_is_a_gap_too() -> None:
    subject = linked(frames=3, resend=4 * WINDOW)
    for _ in range(3):
        subject.send(b"x" * WINDOW)
    linked_again(subject, 0)
    subject.catch_up(0.0)
    for _ in range(3):
        subject.send(b"y")
    subject.on_ack(1)
    pieces, lost = subject.catch_up(0.0)
    assert lost == Lost(2, 3, 2)
    assert pieces[:2] == [gap_frame(2, 2), data_header(4, 0, 1)]


# Receiving --------------------------------------------------------------------------------------------------


def test_what_we_have_is_dropped() -> None:
    subject = linked()
    assert subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    assert not subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    assert subject.received == 1


def test_a_gap_moves_on() -> None:
    subject = linked()
    subject.on_gap(1, 5)
    assert subject.on_data(DataReceived(6, 0, b"x"), 0.0)


@pytest.mark.parametrize("number", [ACK_FRAMES, 1])
def test_acks_go_out_by_number_by_size_and_by_time(number: int) -> None:
    subject = linked()
    body = b"x" * (ACK_BYTES if number == 1 else 1)
    for sequence in range(1, number + 1):
        assert subject.ack(0.0) is None
        subject.on_data(DataReceived(sequence, 0, body), 0.0)
    assert subject.ack(0.0) == ack_frame(number)
    assert subject.ack(9.0) is None
    subject.on_data(DataReceived(number + 1, 0, b"x"), 10.0)
    assert subject.ack_due == 10.0 + ACK_DELAY
    assert subject.ack(10.0) is None
    assert subject.ack(10.0 + ACK_DELAY) == ack_frame(number + 1)
    assert subject.ack_due is None


def test_a_frame_of_ours_saves_the_ack() -> None:
    subject = linked()
    subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    subject.send(b"y")
    assert subject.ack(9.0) is None


def test_a_frame_that_is_sent_again_says_what_was_known_when_it_was_made() -> None:
    subject = linked()
    subject.send(b"lost on the way")
    subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    subject.send(b"too")
    linked_again(subject, 0)
    assert subject.catch_up(0.0)[0] == [data_header(1, 0, 15), b"lost on the way", data_header(2, 1, 3), b"too"]


def test_a_frame_that_comes_again_does_not_take_back_what_is_acknowledged() -> None:
    subject = linked()
    for _ in range(3):
        subject.send(b"x")
    linked_again(subject, 2)
    assert subject.on_data(DataReceived(1, 0, b"made before the link broke"), 0.0)
    assert (subject.heard, subject.acknowledged) == (0, 2)
    assert subject.on_data(DataReceived(2, 3, b"made since"), 0.0)
    assert (subject.heard, subject.acknowledged) == (3, 3)


# What cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [0, -1, 3, 2**64 - 1])
def test_frames_from_the_future_are_refused(sequence: int) -> None:
    subject = linked()
    subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    with pytest.raises(MeshError, match="missing"):
        subject.on_data(DataReceived(sequence, 0, b"x"), 0.0)


@pytest.mark.parametrize("acknowledged", [-1, 0, 4, 2**64 - 1])
def test_acks_of_what_was_never_sent_or_less_than_before_are_refused(acknowledged: int) -> None:
    subject = linked()
    for _ in range(3):
        subject.send(b"x")
    subject.on_data(DataReceived(1, 1, b"x"), 0.0)
    with pytest.raises(MeshError):
        subject.on_ack(acknowledged)
    with pytest.raises(MeshError):
        subject.on_data(DataReceived(2, acknowledged, b"x"), 0.0)


@pytest.mark.parametrize(
    "event",
    [
        ResumeReceived(THEIRS, OURS, 4, False),
        ResumeReceived(THEIRS, OURS, 1, False),
        ResumeReceived(THEIRS, OURS + 1, 2, False),
        ResumeReceived(THEIRS, OURS, -1, False),
        ResumeReceived(0, OURS, 2, False),
        ResumeReceived(THEIRS, -1, 2, False),
    ],
    ids=["the future", "an older link", "another epoch of ours", "negative", "no epoch", "negative epoch"],
)
def test_a_resume_that_cannot_be_is_refused(event: ResumeReceived) -> None:
    subject = linked()
    for _ in range(3):
        subject.send(b"x")
    subject.on_ack(2)
    subject.detach()
    subject.resume(False)
    with pytest.raises(MeshError):
        subject.on_resume(event)


@pytest.mark.parametrize(("first", "count"), [(1, 1), (3, 1), (2, 0), (2, -1), (2, 2**53)])
def test_a_gap_that_does_not_fit_is_refused(first: int, count: int) -> None:
    subject = linked()
    subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    with pytest.raises(MeshError):
        subject.on_gap(first, count)


def test_gaps_do_not_lead_to_numbers_that_no_frame_can_carry() -> None:
    subject = linked()
    subject.on_gap(1, 2**53 - 1)
    for count in (1, 2**53 - 1):
        with pytest.raises(MeshError):
            subject.on_gap(2**53, count)
    assert subject.send(b"x") == data_header(1, 2**53 - 1, 1)


def test_nothing_comes_before_the_resume_and_only_one_resume() -> None:
    subject = session()
    subject.resume(False)
    with pytest.raises(MeshError):
        subject.on_data(DataReceived(1, 0, b"x"), 0.0)
    with pytest.raises(MeshError):
        subject.on_gap(1, 1)
    with pytest.raises(MeshError):
        linked().on_resume(ResumeReceived(THEIRS, 0, 0, False))
