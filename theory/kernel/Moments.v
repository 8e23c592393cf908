(* What are the moments of ReLU(a + sigma z)? The closed forms are the integrals. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Require Import Gaussian Formulas Normal Integrals.
Open Scope R_scope.

Theorem density_has_mass_1 : mean (fun _ => 1) 1.
Proof.
  apply mean_ext with (cubic 1 0 0 0); [intros z; unfold cubic; ring |].
  replace 1 with (1 + 0) at 2 by ring. apply cubic_mean.
Qed.

Lemma mean_of_square : mean (fun z => z ^ 2) 1.
Proof.
  apply mean_ext with (cubic 0 0 1 0); [intros z; unfold cubic; ring |].
  replace 1 with (0 + 1) at 2 by ring. apply cubic_mean.
Qed.

Section ReLU.
Variables a sigma : R.
Hypothesis positive : 0 < sigma.

Lemma off_below : forall z : R, z < - a / sigma -> relu (a + sigma * z) = 0.
Proof.
  intros z H. apply Rmax_right. apply Rmult_lt_compat_l with (1 := positive) in H.
  replace (sigma * (- a / sigma)) with (- a) in H by (field; lra). lra.
Qed.

Lemma on_above : forall z : R, - a / sigma < z -> relu (a + sigma * z) = a + sigma * z.
Proof.
  intros z H. apply Rmax_left. apply Rmult_lt_compat_l with (1 := positive) in H.
  replace (sigma * (- a / sigma)) with (- a) in H by (field; lra). lra.
Qed.

Lemma border : - a / sigma = - (a / sigma).
Proof. field. lra. Qed.

(* A function of the ReLU that is a constant where it is off, and a cubic where it is on. *)
Lemma mean_of_pieces : forall (g : R -> R) (off c0 c1 c2 c3 : R),
  g 0 = off -> (forall z, - a / sigma < z -> g (a + sigma * z) = cubic c0 c1 c2 c3 z) ->
  mean (fun z => g (relu (a + sigma * z)))
    (off * Q (a / sigma) + (c0 + c2 - cubic_integral c0 c1 c2 c3 (- (a / sigma)))).
Proof.
  intros g off c0 c1 c2 c3 G0 G. rewrite <- border. apply mean_split with (- a / sigma).
  - apply left_ext with (fun z => cubic off 0 0 0 z * phi z).
    + intros z H. rewrite off_below, G0 by exact H. unfold cubic. ring.
    + replace (off * Q (a / sigma)) with (cubic_integral off 0 0 0 (- a / sigma)).
      * apply cubic_left.
      * rewrite border. unfold cubic_integral. rewrite Phi_opp. ring.
  - apply right_ext with (fun z => cubic c0 c1 c2 c3 z * phi z); [| apply cubic_right].
    intros z H. rewrite on_above, G by exact H. reflexivity.
Qed.

Theorem relu_mean_is_the_mean : mean (fun z => relu (a + sigma * z)) (relu_mean a sigma).
Proof.
  replace (relu_mean a sigma)
    with (0 * Q (a / sigma) + (a + 0 - cubic_integral a sigma 0 0 (- (a / sigma)))).
  - apply (mean_of_pieces (fun y => y)); [reflexivity | intros z _; unfold cubic; ring].
  - change (relu_mean a sigma) with (a * Phi (a / sigma) + sigma * phi (a / sigma)).
    unfold cubic_integral. rewrite Phi_opp, phi_even, (Phi_Q (a / sigma)). ring.
Qed.

Theorem relu_second_moment_is_the_mean : mean (fun z => relu (a + sigma * z) ^ 2) (relu_second_moment a sigma).
Proof.
  replace (relu_second_moment a sigma)
    with (0 * Q (a / sigma) + (a ^ 2 + sigma ^ 2 - cubic_integral (a ^ 2) (2 * a * sigma) (sigma ^ 2) 0 (- (a / sigma)))).
  - apply (mean_of_pieces (fun y => y ^ 2)); [ring | intros z _; unfold cubic; ring].
  - change (relu_second_moment a sigma)
      with ((a ^ 2 + sigma ^ 2) * Phi (a / sigma) + a * sigma * phi (a / sigma)).
    unfold cubic_integral. rewrite Phi_opp, phi_even, (Phi_Q (a / sigma)). field. lra.
Qed.

Theorem relu_variance_is_the_variance :
  mean (fun z => (relu (a + sigma * z) - relu_mean a sigma) ^ 2) (relu_variance a sigma).
Proof.
  set (m := relu_mean a sigma).
  apply mean_ext with (fun z => relu (a + sigma * z) ^ 2 + (- (2 * m) * relu (a + sigma * z) + m ^ 2 * 1)).
  { intros z. ring. }
  replace (relu_variance a sigma) with (relu_second_moment a sigma + (- (2 * m) * m + m ^ 2 * 1)).
  - apply mean_plus; [apply relu_second_moment_is_the_mean |].
    apply mean_plus; apply mean_scale; [apply relu_mean_is_the_mean | apply density_has_mass_1].
  - change (relu_variance a sigma) with (relu_second_moment a sigma - m ^ 2). ring.
Qed.

Lemma shift_of_relu : forall z : R, Rabs (relu (a + sigma * z) - relu a) <= Rabs (sigma * z).
Proof.
  intros z. unfold relu, Rmax. destruct (Rle_dec (a + sigma * z) 0), (Rle_dec a 0);
    unfold Rabs; repeat destruct Rcase_abs; lra.
Qed.

Theorem relu_variance_is_between_0_and_sigma_squared : 0 <= relu_variance a sigma <= sigma ^ 2.
Proof.
  split.
  - apply (mean_of_nonnegative (fun z => (relu (a + sigma * z) - relu_mean a sigma) ^ 2)).
    + intros z. apply pow2_ge_0.
    + apply relu_variance_is_the_variance.
  - set (m := relu_mean a sigma). set (v := relu_variance a sigma).
    enough (v + (m - relu a) ^ 2 * 1 <= sigma ^ 2 * 1) by (pose proof (pow2_ge_0 (m - relu a)); lra).
    apply (mean_monotone (fun z => (relu (a + sigma * z) - relu a) ^ 2) (fun z => sigma ^ 2 * z ^ 2)).
    + intros z. rewrite <- Rpow_mult_distr, <- !Rsqr_pow2. apply Rsqr_le_abs_1, shift_of_relu.
    + apply mean_ext with (fun z => (relu (a + sigma * z) - m) ^ 2
        + (2 * (m - relu a) * (relu (a + sigma * z) + - m * 1) + (m - relu a) ^ 2 * 1)); [intros z; ring |].
      replace (v + (m - relu a) ^ 2 * 1) with (v + (2 * (m - relu a) * (m + - m * 1) + (m - relu a) ^ 2 * 1)) by ring.
      apply mean_plus; [apply relu_variance_is_the_variance |].
      apply mean_plus; apply mean_scale; [| apply density_has_mass_1].
      apply mean_plus; [apply relu_mean_is_the_mean | apply mean_scale, density_has_mass_1].
    + apply mean_scale, mean_of_square.
Qed.
End ReLU.
