(* How large is programming noise? The ranges of the measured polynomials, in microsiemens. *)

From Coq Require Import Reals Lra Psatz.
Require Import Gaussian Formulas.
Open Scope R_scope.

Theorem pcm_range : forall r : R, 0 <= r <= 1 -> 26348 / 100000 <= pcm r <= 10864 / 10000.
Proof.
  intros r H. unfold pcm. split; [nra |].
  pose proof (pow2_ge_0 (r - 983 / 1173)). nra.
Qed.

(* The polynomial less its value at an end is the distance from there times a square and a positive rest. *)
Lemma weighted_square : forall w y : R, 0 <= w -> 0 <= w * y ^ 2.
Proof. intros w y H. apply Rmult_le_pos; [exact H | apply pow2_ge_0]. Qed.

Theorem hermes_one_device_range : forall r : R, 0 <= r <= hermes_border ->
  25797 / 10000 <= hermes_one_device r <= 83623 / 10000.
Proof.
  intros r H. unfold hermes_one_device, hermes_border in *.
  assert (X : 0 <= 180 * r <= 525 / 10) by lra.
  revert X. generalize (180 * r). intros x X. split.
  - pose proof (weighted_square x (x - 633 / 10) (proj1 X)). nra.
  - assert (W : 0 <= 525 / 10 - x) by lra. pose proof (weighted_square _ (x - 37) W). nra.
Qed.

Theorem hermes_two_devices_range : forall r : R, hermes_border <= r <= 1 ->
  83549 / 10000 <= hermes_two_devices r <= 191985 / 10000.
Proof.
  intros r H. unfold hermes_two_devices, hermes_border in *.
  assert (X : 525 / 10 <= 180 * r <= 180) by lra.
  revert X. generalize (180 * r). intros x X. split.
  - assert (W : 0 <= x - 525 / 10) by lra. pose proof (weighted_square _ (x - 976 / 10) W). nra.
  - assert (W : 0 <= 180 - x) by lra. pose proof (weighted_square _ (x - 34) W). nra.
Qed.
