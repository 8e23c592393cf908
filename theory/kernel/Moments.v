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

(* A function of the ReLU: a constant where it is off, and what is integrated where it is on. *)
Lemma mean_of_halves : forall (g : R -> R) (off r : R), g 0 = off ->
  is_RInt_gen (fun z => g (a + sigma * z) * phi z) (at_point (- (a / sigma))) (Rbar_locally p_infty) r ->
  mean (fun z => g (relu (a + sigma * z))) (off * Q (a / sigma) + r).
Proof.
  intros g off r G0 G. rewrite <- border in G. apply mean_split with (- a / sigma).
  - apply left_ext with (fun z => cubic off 0 0 0 z * phi z).
    + intros z H. rewrite off_below, G0 by exact H. unfold cubic. ring.
    + replace (off * Q (a / sigma)) with (cubic_integral off 0 0 0 (- a / sigma)).
      * apply cubic_left.
      * rewrite border. unfold cubic_integral. rewrite Phi_opp. ring.
  - apply right_ext with (fun z => g (a + sigma * z) * phi z); [| exact G].
    intros z H. rewrite on_above by exact H. reflexivity.
Qed.

(* A cubic where it is on. *)
Lemma mean_of_pieces : forall (g : R -> R) (off c0 c1 c2 c3 : R),
  g 0 = off -> (forall z, g (a + sigma * z) = cubic c0 c1 c2 c3 z) ->
  mean (fun z => g (relu (a + sigma * z)))
    (off * Q (a / sigma) + (c0 + c2 - cubic_integral c0 c1 c2 c3 (- (a / sigma)))).
Proof.
  intros g off c0 c1 c2 c3 G0 G. apply mean_of_halves; [exact G0 |].
  apply right_ext with (fun z => cubic c0 c1 c2 c3 z * phi z); [| apply cubic_right].
  intros z _. rewrite G. reflexivity.
Qed.

(* One cubic up to q, and another one beyond. *)
Lemma mean_of_three_pieces : forall (g : R -> R) (off q c0 c1 c2 c3 d0 d1 d2 d3 : R),
  g 0 = off -> - (a / sigma) <= q ->
  (forall z, z < q -> g (a + sigma * z) = cubic c0 c1 c2 c3 z) ->
  (forall z, q < z -> g (a + sigma * z) = cubic d0 d1 d2 d3 z) ->
  mean (fun z => g (relu (a + sigma * z)))
    (off * Q (a / sigma) + (cubic_integral c0 c1 c2 c3 q - cubic_integral c0 c1 c2 c3 (- (a / sigma))
      + (d0 + d2 - cubic_integral d0 d1 d2 d3 q))).
Proof.
  intros g off q c0 c1 c2 c3 d0 d1 d2 d3 G0 H C D. apply mean_of_halves; [exact G0 |].
  apply (is_RInt_gen_Chasles (fun z => g (a + sigma * z) * phi z) q).
  - apply is_RInt_gen_at_point.
    apply is_RInt_ext with (fun z => cubic c0 c1 c2 c3 z * phi z); [| apply cubic_between].
    intros z. rewrite Rmin_left, Rmax_right by exact H. intros [_ Z]. rewrite C by exact Z. reflexivity.
  - apply right_ext with (fun z => cubic d0 d1 d2 d3 z * phi z); [| apply cubic_right].
    intros z Z. rewrite D by exact Z. reflexivity.
Qed.

Theorem relu_mean_is_the_mean : mean (fun z => relu (a + sigma * z)) (relu_mean a sigma).
Proof.
  replace (relu_mean a sigma)
    with (0 * Q (a / sigma) + (a + 0 - cubic_integral a sigma 0 0 (- (a / sigma)))).
  - apply (mean_of_pieces (fun y => y)); [reflexivity | intros z; unfold cubic; ring].
  - replace (relu_mean a sigma) with (a * Phi (a / sigma) + sigma * phi (a / sigma))
      by (unfold relu_mean, Phi, phi, Rdiv; ring).
    unfold cubic_integral. rewrite Phi_opp, phi_even, (Phi_Q (a / sigma)). ring.
Qed.

Theorem relu_second_moment_is_the_mean : mean (fun z => relu (a + sigma * z) ^ 2) (relu_second_moment a sigma).
Proof.
  replace (relu_second_moment a sigma)
    with (0 * Q (a / sigma)
      + (a ^ 2 + sigma ^ 2 - cubic_integral (a ^ 2) (2 * a * sigma) (sigma ^ 2) 0 (- (a / sigma)))).
  - apply (mean_of_pieces (fun y => y ^ 2)); [ring | intros z; unfold cubic; ring].
  - replace (relu_second_moment a sigma)
      with ((a ^ 2 + sigma ^ 2) * Phi (a / sigma) + a * sigma * phi (a / sigma))
      by (unfold relu_second_moment, Phi, phi, Rdiv; ring).
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
  - unfold m, relu_variance, relu_second_moment, relu_mean, Rdiv. ring.
Qed.

Lemma shift_of_relu : forall z : R, Rabs (relu (a + sigma * z) - relu a) <= Rabs (sigma * z).
Proof.
  intros z. unfold relu, Rmax. destruct (Rle_dec (a + sigma * z) 0), (Rle_dec a 0);
    unfold Rabs; repeat destruct Rcase_abs; lra.
Qed.

Lemma relu_nonnegative : forall x : R, 0 <= relu x.
Proof. intros x. apply Rmax_r. Qed.

Lemma relu_mean_nonnegative : 0 <= relu_mean a sigma.
Proof.
  apply (mean_of_nonnegative (fun z => relu (a + sigma * z))); [| apply relu_mean_is_the_mean].
  intros z. apply relu_nonnegative.
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

Theorem relu_third_moment_about_is_the_mean : forall centre : R, 0 <= centre ->
  mean (fun z => Rabs (relu (a + sigma * z) - centre) ^ 3) (relu_third_moment_about centre a sigma).
Proof.
  intros centre C. set (s := a - centre).
  assert (S : sigma * (- s / sigma) = - s) by (field; lra).
  set (tail := fun y => - (s ^ 3 + 3 * s * sigma ^ 2) * Q (y / sigma)
    - sigma * (3 * s ^ 2 + 3 * s * y + y ^ 2 + 2 * sigma ^ 2) * phi (y / sigma)).
  assert (E : relu_third_moment_about centre a sigma = centre ^ 3 * Q (a / sigma) + tail (- a) - 2 * tail (- s)).
  { unfold tail, s, relu_third_moment_about, Q, phi, Rdiv. ring. }
  set (c0 := s ^ 3). set (c1 := 3 * s ^ 2 * sigma). set (c2 := 3 * s * sigma ^ 2). set (c3 := sigma ^ 3).
  assert (T : forall y, cubic_integral c0 c1 c2 c3 (y / sigma) = c0 + c2 + tail y).
  { intros y. unfold cubic_integral, tail, c0, c1, c2, c3. rewrite Phi_Q. field. lra. }
  assert (N : forall z, cubic_integral (- c0) (- c1) (- c2) (- c3) z = - cubic_integral c0 c1 c2 c3 z).
  { intros z. unfold cubic_integral. ring. }
  replace (relu_third_moment_about centre a sigma) with (centre ^ 3 * Q (a / sigma)
    + (cubic_integral (- c0) (- c1) (- c2) (- c3) (- s / sigma)
       - cubic_integral (- c0) (- c1) (- c2) (- c3) (- (a / sigma))
       + (c0 + c2 - cubic_integral c0 c1 c2 c3 (- s / sigma)))).
  - apply (mean_of_three_pieces (fun y => Rabs (y - centre) ^ 3)).
    + rewrite Rminus_0_l, Rabs_Ropp, Rabs_pos_eq by exact C. reflexivity.
    + rewrite <- border. unfold Rdiv. apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat, positive |].
      unfold s. lra.
    + intros z Z. apply Rmult_lt_compat_l with (1 := positive) in Z. rewrite S in Z.
      rewrite Rabs_left by (unfold s in Z; lra). unfold cubic, c0, c1, c2, c3, s. ring.
    + intros z Z. apply Rmult_lt_compat_l with (1 := positive) in Z. rewrite S in Z.
      rewrite Rabs_pos_eq by (unfold s in Z; lra). unfold cubic, c0, c1, c2, c3, s. ring.
  - rewrite E, !N, <- border, !T. ring.
Qed.

Theorem relu_third_moment_is_the_mean :
  mean (fun z => Rabs (relu (a + sigma * z) - relu_mean a sigma) ^ 3) (relu_third_moment a sigma).
Proof.
  replace (relu_third_moment a sigma) with (relu_third_moment_about (relu_mean a sigma) a sigma)
    by (unfold relu_third_moment, relu_third_moment_about, relu_mean, Rdiv; ring).
  apply relu_third_moment_about_is_the_mean, relu_mean_nonnegative.
Qed.

Theorem relu_exponential_is_the_mean : forall theta : R,
  mean (fun z => exp (theta * relu (a + sigma * z))) (relu_exponential theta a sigma).
Proof.
  intros theta. set (scale := exp (theta * a + (theta * sigma) ^ 2 / 2)).
  replace (relu_exponential theta a sigma)
    with (1 * Q (a / sigma) + (scale * 1 - scale * Phi (- (a / sigma) - theta * sigma))).
  - apply (mean_of_halves (fun y => exp (theta * y))); [rewrite Rmult_0_r; apply exp_0 |].
    apply right_ext with (fun z => scale * phi (z - theta * sigma)).
    + intros z _. unfold scale, phi, Rdiv. rewrite <- !Rmult_assoc, <- !exp_plus. do 2 f_equal. field.
    + apply (right_of (fun z => scale * phi (z - theta * sigma)) (fun z => scale * Phi (z - theta * sigma))).
      * intros z. apply (is_derive_scal (fun z => Phi (z - theta * sigma)) z scale). evar_last.
        -- apply (is_derive_comp Phi (fun z => z - theta * sigma)); [apply Phi_derive |].
           auto_derive; [exact I | reflexivity].
        -- unfold scal; simpl. unfold mult; simpl. real_equation. ring.
      * intros z. apply (continuous_scal_r scale (fun z => phi (z - theta * sigma))).
        apply (continuous_comp (fun z => z - theta * sigma) phi); [| apply phi_continuous].
        apply smooth. auto_derive. exact I.
      * apply (is_lim_scal_l (fun z => Phi (z - theta * sigma)) scale p_infty 1).
        apply (is_lim_comp Phi (fun z => z - theta * sigma) p_infty 1 p_infty);
          [apply Phi_limit | | exists 0; discriminate].
        apply (is_lim_minus (fun z => z) (fun _ => theta * sigma) p_infty p_infty (theta * sigma) p_infty);
          [apply is_lim_id | apply is_lim_const | easy].
  - replace (relu_exponential theta a sigma) with (Q (a / sigma) + scale * Phi (a / sigma + theta * sigma))
      by (unfold scale, relu_exponential, Q, Phi, Rdiv; ring).
    replace (- (a / sigma) - theta * sigma) with (- (a / sigma + theta * sigma)) by ring.
    rewrite Phi_opp, (Phi_Q (a / sigma + theta * sigma)). ring.
Qed.
End ReLU.
