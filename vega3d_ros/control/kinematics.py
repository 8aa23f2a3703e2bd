"""Where the tool is, how it moves with the joints, and how to reach a pose: Pinocchio on a URDF.

Frames: everything is in the *base* frame (the URDF's root link unless another is named), the tool
frame is `tip_frame`.  Units SI, quaternions xyzw.  Objects are not thread-safe: Pinocchio keeps its
results in one workspace per model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from xml.etree import ElementTree as ET

import numpy as np
import pinocchio as pin

from policies.types import FloatArray, VegaError

_ROTOR_INERTIA = "{http://drake.mit.edu}rotor_inertia"
ENDLESS_RAD = 1e6
_GEAR_RATIO = "{http://drake.mit.edu}gear_ratio"


class Kinematics:
    """One arm, from its URDF.

    urdf_xml: the URDF's text; joint_names: the n arm joints in the order of the chain; tip_frame: the
    link (or frame) of the tool centre point; base_frame: the link in whose frame poses are given,
    empty for the root link.  Joints that are not named (fingers, another arm) stay at their neutral value; none may lie
    between base and tip.

    lower, upper (n,) rad; velocity_limits (n,) rad/s; effort_limits (n,) N m, as in the URDF (infinite
    where it gives 0).  continuous: joints that turn without end; their angles count on from turn to turn.
    Raises VegaError on a name that the URDF lacks, and lists those it has; and on a joint left out of the chain.
    """

    def __init__(self, urdf_xml: str, joint_names: Sequence[str], tip_frame: str, base_frame: str = "") -> None:
        self.joint_names = tuple(joint_names)
        urdf_xml, self.continuous = bounded(urdf_xml, self.joint_names)
        full = _parse(urdf_xml)
        _check_names(full, self.joint_names, tip_frame, base_frame)
        locked = [full.getJointId(name) for name in full.names[1:] if name not in self.joint_names]
        self._model = pin.buildReducedModel(full, locked, pin.neutral(full))
        if tuple(self._model.names[1:]) != self.joint_names:
            raise VegaError(
                f"joint_names {list(self.joint_names)} are not in the order of the kinematic chain: "
                f"list them as {list(self._model.names[1:])}."
            )
        if self._model.nq != len(self.joint_names):
            raise VegaError("A joint of the arm has more than one degree of freedom: name revolute and prismatic ones.")
        self._model.armature = _rotor_inertias(urdf_xml, self.joint_names)
        self._data = self._model.createData()
        self._upper = np.triu(np.ones((self._model.nv, self._model.nv), dtype=bool))
        self._tip = self._model.getFrameId(tip_frame)
        self._base = self._model.getFrameId(base_frame) if base_frame else 0
        self.lower: FloatArray = self._model.lowerPositionLimit.copy()
        self.upper: FloatArray = self._model.upperPositionLimit.copy()
        self.velocity_limits: FloatArray = _or_infinite(self._model.velocityLimit)
        self.effort_limits: FloatArray = _or_infinite(self._model.effortLimit)

    @property
    def n(self) -> int:
        """Number of arm joints."""
        return int(self._model.nq)

    def nearest(self, q: FloatArray, posture: FloatArray) -> FloatArray:
        """The same posture (n,) rad, each continuous joint in the turn that is nearest to q (n,) rad."""
        if not self.continuous:
            return posture
        turns = np.array([name in self.continuous for name in self.joint_names])
        return posture + turns * 2.0 * np.pi * np.round((q - posture) / (2.0 * np.pi))

    def tip_pose(self, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position (3,) m and rotation matrix (3, 3) of the tool in the base frame, for q (n,) rad."""
        pin.framesForwardKinematics(self._model, self._data, _joints(q, self.n))
        return self._tip_in_base()

    def forward(self, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position (3,) m and quaternion (4,) xyzw, w >= 0, of the tool in the base frame, for q (n,) rad."""
        position, rotation = self.tip_pose(q)
        quaternion = pin.Quaternion(rotation).coeffs()
        return position, -quaternion if quaternion[3] < 0 else quaternion

    def jacobian(self, q: FloatArray) -> FloatArray:
        """(6, n): d(linear m/s, angular rad/s of the tool) / d(rad/s), in axes parallel to the base frame."""
        jacobian = pin.computeFrameJacobian(
            self._model, self._data, _joints(q, self.n), self._tip, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )
        return self._to_base_axes(jacobian)

    def dynamics(self, q: FloatArray, qd: FloatArray) -> tuple[FloatArray, ...]:
        """What an impedance law needs at q (n,) rad, qd (n,) rad/s, in one pass over the chain.

        Returns position (3,) m, rotation (3, 3), jacobian (6, n) as above, joint-space inertia (n, n)
        kg m^2 with the rotors' share, and the torques (n,) N m that hold the arm against gravity and
        velocity terms; gravity points along -z of the root link.
        """
        model, data = self._model, self._data
        pin.computeAllTerms(model, data, q, qd)
        pin.updateFramePlacements(model, data)
        jacobian = pin.getFrameJacobian(model, data, self._tip, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED)
        inertia = np.where(self._upper, data.M, data.M.T)
        position, rotation = self._tip_in_base()
        return position, rotation, self._to_base_axes(jacobian), inertia, data.nle.copy()

    def velocity_product(self, q: FloatArray, qd: FloatArray) -> FloatArray:
        """(6,) dJ/dt qd: the tool's acceleration (m/s^2, rad/s^2, base axes) while the joints do not accelerate."""
        pin.forwardKinematics(self._model, self._data, q, qd, np.zeros(self.n))
        motion = pin.getFrameClassicalAcceleration(
            self._model, self._data, self._tip, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )
        return self._to_base_axes(motion.vector[:, None])[:, 0]

    def inverse_step(
        self,
        q: FloatArray,
        twist: FloatArray,
        period_s: float,
        home: FloatArray | None = None,
        null_gain: float = 1.0,
        damping: float = 0.01,
    ) -> FloatArray:
        """Joint angles (n,) rad after moving the tool with `twist` for `period_s`, as well as the limits allow.

        twist (6,): m/s and rad/s in base axes.  Damped least squares (damping in m/rad); what the task
        leaves free drifts towards `home` (n,) rad with rate `null_gain` 1/s.  A joint that would pass its
        position or velocity limit is held there and the others make up for it.
        """
        q = _joints(q, self.n)
        low = np.maximum((self.lower - q) / period_s, -self.velocity_limits)
        high = np.minimum((self.upper - q) / period_s, self.velocity_limits)
        low, high = np.minimum(low, high), np.maximum(low, high)
        jacobian = self.jacobian(q)
        posture = np.zeros(self.n) if home is None else null_gain * (home - q)
        rate = np.zeros(self.n)
        free = np.ones(self.n, dtype=bool)
        for _ in range(self.n):
            task = twist - jacobian[:, ~free] @ rate[~free]
            part = jacobian[:, free]
            inverse = part.T @ np.linalg.inv(part @ part.T + damping**2 * np.eye(6))
            rate[free] = inverse @ task + posture[free] - inverse @ (part @ posture[free])
            outside = free & ((rate < low) | (rate > high))
            rate = np.clip(rate, low, high)
            if not outside.any():
                break
            free &= ~outside
        return np.clip(q + rate * period_s, np.minimum(self.lower, q), np.maximum(self.upper, q))

    def inverse(
        self,
        position: FloatArray,
        quaternion: FloatArray,
        q: FloatArray,
        home: FloatArray | None = None,
        iterations: int = 200,
        tolerance: float = 1e-5,
    ) -> FloatArray:
        """Joint angles (n,) rad within limits that put the tool at position (3,) m, quaternion (4,) xyzw.

        Starts from q (n,) rad and repeats `inverse_step`.  Raises VegaError if the pose is not reached to
        `tolerance` (m, rad).
        """
        goal = pin.Quaternion(np.asarray(quaternion, dtype=float)).normalized().matrix()
        q = _joints(q, self.n)
        miss = np.inf
        for _ in range(iterations):
            here, rotation = self.tip_pose(q)
            error = np.concatenate([position - here, pin.log3(goal @ rotation.T)])
            miss = float(np.linalg.norm(error))
            if miss < tolerance:
                return q
            q = self.inverse_step(q, error * min(1.0, 0.5 / miss), 1.0, home=home, null_gain=min(0.1, miss))
        raise VegaError(
            f"The pose at {np.round(position, 3).tolist()} m is {miss:.3g} (m, rad) out of reach: choose a nearer pose."
        )

    def _tip_in_base(self) -> tuple[FloatArray, FloatArray]:
        placement = self._data.oMf[self._tip]
        if self._base:
            placement = self._data.oMf[self._base].actInv(placement)
        return placement.translation.copy(), placement.rotation.copy()

    def _to_base_axes(self, columns: FloatArray) -> FloatArray:
        if not self._base:
            return columns
        rotation = self._data.oMf[self._base].rotation.T
        return np.vstack([rotation @ columns[:3], rotation @ columns[3:]])


def _parse(urdf_xml: str) -> pin.Model:
    try:
        ET.fromstring(urdf_xml)
        with _quiet_stderr():
            return pin.buildModelFromXML(urdf_xml)
    except (ET.ParseError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        remedy = "set robot_description to a valid URDF"
        if "<xacro:" in urdf_xml:
            remedy = "it is written in xacro, run `xacro FILE.urdf.xacro > FILE.urdf` and give that file"
        raise VegaError(f"The robot description cannot be read as URDF ({reason}): {remedy}.") from error


def bounded(urdf_xml: str, joint_names: Sequence[str]) -> tuple[str, frozenset[str]]:
    """The URDF with limits `ENDLESS_RAD` away for the arm's joints that turn without end, and their names.

    Pinocchio describes such a joint by sine and cosine, which forgets the turns that cables remember.  A text that is
    no XML is returned as it is.
    """
    try:
        root = ET.fromstring(urdf_xml)
    except ET.ParseError:
        return urdf_xml, frozenset()  # `_parse` says so
    endless = [j for j in root.iter("joint") if j.get("type") == "continuous" and j.get("name") in joint_names]
    for joint in endless:
        joint.set("type", "revolute")
        limit = joint.find("limit")
        limit = ET.SubElement(joint, "limit", effort="0", velocity="0") if limit is None else limit
        limit.set("lower", str(-ENDLESS_RAD))
        limit.set("upper", str(ENDLESS_RAD))
    text = ET.tostring(root, encoding="unicode") if endless else urdf_xml
    return text, frozenset(str(joint.get("name")) for joint in endless)


@contextmanager
def _quiet_stderr():  # type: ignore[no-untyped-def]
    """urdfdom prints its own complaint on file descriptor 2; ours says the same once, and what to do."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _check_names(model: pin.Model, joint_names: tuple[str, ...], tip_frame: str, base_frame: str) -> None:
    known = list(model.names[1:])
    if not joint_names or len(set(joint_names)) != len(joint_names):
        raise VegaError(f"joint_names must list each arm joint once: choose from {known}.")
    missing = [name for name in joint_names if name not in known]
    if missing:
        raise VegaError(f"The robot description has no movable joint {missing}: choose joint_names from {known}.")
    for parameter, frame in (("tip_frame", tip_frame), ("base_frame", base_frame)):
        if not model.existFrame(frame) and (frame or parameter == "tip_frame"):
            links = [f.name for f in model.frames if f.type == pin.FrameType.BODY]
            raise VegaError(f"The robot description has no frame '{frame}': choose {parameter} from {links}.")
    ends = (tip_frame, base_frame or "universe")
    to_tip, to_base = (set(model.supports[model.frames[model.getFrameId(frame)].parentJoint]) for frame in ends)
    left_out = [model.names[joint] for joint in sorted(to_tip ^ to_base) if model.names[joint] not in joint_names]
    if left_out:
        raise VegaError(
            f"joint_names lacks {', '.join(left_out)}, which moves tip_frame '{tip_frame}': list every joint up to it, "
            "or fix in the robot description what never moves."
        )


def _rotor_inertias(urdf_xml: str, joint_names: tuple[str, ...]) -> FloatArray:
    """(n,) kg m^2: inertia of the rotors as seen at the joints, gear ratio^2 x `drake:rotor_inertia`, 0 if not given.

    URDF has no tag of its own for it; this one (in `<transmission><actuator>`) is Drake's.
    """
    inertia = dict.fromkeys(joint_names, 0.0)
    for transmission in ET.fromstring(urdf_xml).iter("transmission"):
        joint, rotor = transmission.find("joint"), transmission.find(f"actuator/{_ROTOR_INERTIA}")
        if joint is None or rotor is None or joint.get("name") not in inertia:
            continue
        gear = transmission.find(f"actuator/{_GEAR_RATIO}")
        ratio = float(gear.get("value", "1")) if gear is not None else 1.0
        inertia[joint.get("name", "")] = ratio**2 * float(rotor.get("value", "0"))
    return np.array([inertia[name] for name in joint_names])


def _or_infinite(limits: FloatArray) -> FloatArray:
    return np.where(limits > 0.0, limits, np.inf)


def _joints(q: FloatArray, n: int) -> FloatArray:
    q = np.asarray(q, dtype=np.float64)
    if q.shape != (n,):
        raise VegaError(f"Got joint angles of shape {q.shape}: this arm has {n} joints.")
    return q
