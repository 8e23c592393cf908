(* Which way do the parts of U change? Mean, variance and third moment of a ReLU rise with a; the bound falls. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Require Import Gaussian Formulas Normal Integrals Tail Moments.
Open Scope R_scope.

Section Slopes.
Variable sigma : R.
Hypothesis positive : 0 < sigma.

Let m (a : R) := relu_mean a sigma.

Lemma relu_mean_form : forall a : R, relu_mean a sigma = a * Phi (a / sigma) + sigma * phi (a / sigma).
Proof. intros a. unfold relu_mean, Phi, phi, Rdiv. ring. Qed.

Lemma Derive_Q : forall x : R, Derive Q x = - phi x.
Proof. intros x. apply is_derive_unique, Q_derive. Qed.

Lemma Derive_Phi : forall x : R, Derive Phi x = phi x.
Proof. intros x. apply is_derive_unique, Phi_derive. Qed.

Lemma Derive_phi : forall x : R, Derive phi x = - x * phi x.
Proof. intros x. apply is_derive_unique, phi_derive. Qed.

Lemma smooth_Q : forall x : R, ex_derive Q x.
Proof. intros x. eexists. apply Q_derive. Qed.

Lemma smooth_Phi : forall x : R, ex_derive Phi x.
Proof. intros x. eexists. apply Phi_derive. Qed.

Lemma smooth_phi : forall x : R, ex_derive phi x.
Proof. intros x. eexists. apply phi_derive. Qed.

Lemma relu_mean_slope : forall a : R, is_derive (fun a => relu_mean a sigma) a (Phi (a / sigma)).
Proof.
  intros a. apply is_derive_ext with (fun a => a * Phi (a / sigma) + sigma * phi (a / sigma)).
  { intros x. symmetry. apply relu_mean_form. }
  auto_derive.
  - repeat split; auto using smooth_Phi, smooth_phi.
  - change (a * / sigma) with (a / sigma). rewrite Derive_Phi, Derive_phi. field. lra.
Qed.

Theorem relu_mean_rises : forall a b : R, a <= b -> relu_mean a sigma <= relu_mean b sigma.
Proof.
  intros a b H. apply (rises (fun a => relu_mean a sigma) (fun a => Phi (a / sigma)) a b); try lra.
  - intros x _. apply relu_mean_slope.
  - intros x _. apply Phi_positive.
Qed.

Lemma relu_variance_slope : forall a : R,
  is_derive (fun a => relu_variance a sigma) a (2 * relu_mean a sigma * Q (a / sigma)).
Proof.
  intros a.
  apply is_derive_ext with (fun a => (a ^ 2 + sigma ^ 2) * Phi (a / sigma) + a * sigma * phi (a / sigma)
    - (a * Phi (a / sigma) + sigma * phi (a / sigma)) ^ 2).
  { intros x. real_equation. unfold relu_variance, Phi, phi, Rdiv. ring. }
  auto_derive.
  - repeat split; auto using smooth_Phi, smooth_phi.
  - change (a * / sigma) with (a / sigma). rewrite Derive_Phi, Derive_phi, relu_mean_form, (Phi_Q (a / sigma)).
    field. lra.
Qed.

Theorem relu_variance_rises : forall a b : R, a <= b -> relu_variance a sigma <= relu_variance b sigma.
Proof.
  intros a b H.
  apply (rises (fun a => relu_variance a sigma) (fun a => 2 * relu_mean a sigma * Q (a / sigma)) a b); try lra.
  - intros x _. apply relu_variance_slope.
  - intros x _. pose proof (relu_mean_nonnegative x sigma positive). pose proof (Q_positive (x / sigma)).
    apply Rmult_le_pos; lra.
Qed.

(* The third moment: its slope is 3 Q(a/sigma) times the mean of sgn(R - m) (R - m)^2 + m^2, which is not negative. *)
Definition signed_square (a : R) : R :=
  let s := a - relu_mean a sigma in
  s ^ 2 + sigma ^ 2 - 2 * cubic_integral (s ^ 2) (2 * s * sigma) (sigma ^ 2) 0 (- s / sigma)
    + cubic_integral (s ^ 2) (2 * s * sigma) (sigma ^ 2) 0 (- (a / sigma)).

Lemma signed_square_mean : forall a : R, mean
  (fun z => (relu (a + sigma * z) - m a) * Rabs (relu (a + sigma * z) - m a) + m a ^ 2)
  (signed_square a + m a ^ 2 * Phi (a / sigma)).
Proof.
  intros a. assert (M : 0 <= m a) by exact (relu_mean_nonnegative a sigma positive). unfold signed_square. fold (m a).
  set (s := a - m a). set (c0 := s ^ 2). set (c1 := 2 * s * sigma). set (c2 := sigma ^ 2).
  assert (S : sigma * (- s / sigma) = - s) by (field; lra).
  replace (c0 + c2 - 2 * cubic_integral c0 c1 c2 0 (- s / sigma) + cubic_integral c0 c1 c2 0 (- (a / sigma))
      + m a ^ 2 * Phi (a / sigma))
    with (0 * Q (a / sigma) + (cubic_integral (m a ^ 2 - c0) (- c1) (- c2) 0 (- s / sigma)
      - cubic_integral (m a ^ 2 - c0) (- c1) (- c2) 0 (- (a / sigma))
      + (c0 + m a ^ 2 + c2 - cubic_integral (c0 + m a ^ 2) c1 c2 0 (- s / sigma)))).
  - apply (mean_of_three_pieces a sigma positive (fun y => (y - m a) * Rabs (y - m a) + m a ^ 2)).
    + rewrite Rminus_0_l, Rabs_Ropp, Rabs_pos_eq by exact M. ring.
    + replace (- (a / sigma)) with (- a / sigma) by (field; lra).
      unfold Rdiv. apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat, positive | unfold s; lra].
    + intros z Z. apply Rmult_lt_compat_l with (1 := positive) in Z. rewrite S in Z.
      rewrite Rabs_left by (unfold s in Z; lra). unfold cubic, c0, c1, c2, s. ring.
    + intros z Z. apply Rmult_lt_compat_l with (1 := positive) in Z. rewrite S in Z.
      rewrite Rabs_pos_eq by (unfold s in Z; lra). unfold cubic, c0, c1, c2, s. ring.
  - unfold cubic_integral. rewrite (Phi_opp (a / sigma)), (Phi_Q (a / sigma)). ring.
Qed.

Lemma signed_square_nonnegative : forall a : R, 0 <= signed_square a + m a ^ 2 * Phi (a / sigma).
Proof.
  intros a. apply (mean_of_nonnegative _ _) with (2 := signed_square_mean a). intros z.
  pose proof (relu_nonnegative (a + sigma * z)) as P.
  assert (M : 0 <= m a) by exact (relu_mean_nonnegative a sigma positive).
  set (y := relu (a + sigma * z)) in *.
  destruct (Rle_lt_dec (m a) y).
  - rewrite Rabs_pos_eq by lra. pose proof (pow2_ge_0 (y - m a)). pose proof (pow2_ge_0 (m a)). simpl in *. lra.
  - rewrite Rabs_left by lra. replace ((y - m a) * - (y - m a) + m a ^ 2) with (y * (2 * m a - y)) by ring.
    apply Rmult_le_pos; lra.
Qed.

Lemma third_slope : forall a : R, is_derive (fun a => relu_third_moment a sigma) a
  (3 * Q (a / sigma) * (signed_square a + m a ^ 2 * Phi (a / sigma))).
Proof.
  intros a.
  assert (D : forall x, ex_derive m x) by (intros x; eexists; apply relu_mean_slope).
  assert (E : forall x, Derive m x = Phi (x / sigma)) by (intros x; apply is_derive_unique, relu_mean_slope).
  apply is_derive_ext with (fun a => m a ^ 3 * Q (a / sigma)
    + (- ((a - m a) ^ 3 + 3 * (a - m a) * sigma ^ 2) * Q (- a / sigma)
       - sigma * (3 * (a - m a) ^ 2 + 3 * (a - m a) * (- a) + (- a) ^ 2 + 2 * sigma ^ 2) * phi (- a / sigma))
    - 2 * (- ((a - m a) ^ 3 + 3 * (a - m a) * sigma ^ 2) * Q (- (a - m a) / sigma)
       - sigma * (3 * (a - m a) ^ 2 + 3 * (a - m a) * (- (a - m a)) + (- (a - m a)) ^ 2 + 2 * sigma ^ 2)
         * phi (- (a - m a) / sigma))).
  { intros x. real_equation. unfold m, relu_third_moment, relu_mean, Q, phi, Rdiv. ring. }
  auto_derive.
  - repeat split; auto using smooth_Q, smooth_phi.
  - rewrite !Derive_Q, !Derive_phi, !E. unfold signed_square. fold (m a). unfold cubic_integral.
    change (a * / sigma) with (a / sigma). change (- a * / sigma) with (- a / sigma).
    change (- (a + - m a) * / sigma) with (- (a - m a) / sigma).
    replace (- a / sigma) with (- (a / sigma)) by (field; lra).
    rewrite !Phi_opp, !Q_opp, !phi_even, !(Phi_Q (a / sigma)), !(Phi_Q (- (a - m a) / sigma)).
    field. lra.
Qed.

Theorem relu_third_moment_rises : forall a b : R, a <= b -> relu_third_moment a sigma <= relu_third_moment b sigma.
Proof.
  intros a b H.
  apply (rises (fun a => relu_third_moment a sigma)
    (fun a => 3 * Q (a / sigma) * (signed_square a + m a ^ 2 * Phi (a / sigma))) a b); try lra.
  - intros x _. apply third_slope.
  - intros x _. pose proof (signed_square_nonnegative x). pose proof (Q_positive (x / sigma)).
    apply Rmult_le_pos; lra.
Qed.

(* With a = x u, u the inverse of the noise: the slope of the mean rises with u, so that it is largest at the end. *)
Lemma relu_mean_slope_in_inverse : forall x u : R,
  is_derive (fun u => relu_mean (x * u) sigma) u (x * Phi (x * u / sigma)).
Proof.
  intros x u. evar_last.
  - apply (is_derive_comp (fun a => relu_mean a sigma) (fun u => x * u)); [apply relu_mean_slope |].
    auto_derive; [exact I | reflexivity].
  - unfold scal; simpl. unfold mult; simpl. real_equation. ring.
Qed.

Lemma Phi_rises : forall x y : R, x <= y -> Phi x <= Phi y.
Proof. intros x y H. rewrite !Phi_Q. pose proof (Q_falls x y H). lra. Qed.

Lemma slope_in_inverse_rises : forall x u v : R, u <= v -> x * Phi (x * u / sigma) <= x * Phi (x * v / sigma).
Proof.
  intros x u v H. pose proof (Rinv_0_lt_compat _ positive) as I. destruct (Rle_lt_dec 0 x) as [X | X].
  - apply Rmult_le_compat_l; [exact X |]. apply Phi_rises. unfold Rdiv.
    apply Rmult_le_compat_r; [lra |]. apply Rmult_le_compat_l; lra.
  - apply Ropp_le_cancel. rewrite <- !Ropp_mult_distr_l_reverse.
    apply Rmult_le_compat_l; [lra |]. apply Phi_rises. unfold Rdiv.
    apply Rmult_le_compat_r; [lra |]. apply Ropp_le_cancel. rewrite <- !Ropp_mult_distr_l_reverse.
    apply Rmult_le_compat_l; lra.
Qed.

(* So it is between its values by the slopes at both ends, over a whole interval of u. *)
Theorem relu_mean_is_enclosed : forall x low u high : R, low <= u <= high ->
  relu_mean (x * low) sigma + x * Phi (x * low / sigma) * (u - low) <= relu_mean (x * u) sigma
    <= relu_mean (x * low) sigma + x * Phi (x * high / sigma) * (u - low).
Proof.
  intros x low u high H.
  destruct (mean_value (fun u => relu_mean (x * u) sigma) (fun u => x * Phi (x * u / sigma)) low u)
    with (x := low) (y := u) as [v [B E]]; try lra.
  - intros v _. apply relu_mean_slope_in_inverse.
  - assert (x * Phi (x * low / sigma) <= x * Phi (x * v / sigma)) by (apply slope_in_inverse_rises; lra).
    assert (x * Phi (x * v / sigma) <= x * Phi (x * high / sigma)) by (apply slope_in_inverse_rises; lra).
    assert (0 <= u - low) by lra. split; nra.
Qed.
End Slopes.

(* The bound falls with the ratio and the third moment, and rises with the standard deviation. *)
Theorem error_bound_falls : forall ratio most third most_third sd least_sd : R,
  ratio <= most -> 0 <= third <= most_third -> 0 < least_sd <= sd ->
  error_bound most most_third least_sd <= error_bound ratio third sd.
Proof.
  intros ratio most third most_third sd least_sd H T S.
  replace (error_bound most most_third least_sd) with (Q most - 14 / 25 * most_third / least_sd ^ 3)
    by (unfold error_bound, Q, Rdiv; ring).
  replace (error_bound ratio third sd) with (Q ratio - 14 / 25 * third / sd ^ 3) by (unfold error_bound, Q, Rdiv; ring).
  pose proof (Q_falls ratio most H).
  enough (14 / 25 * third / sd ^ 3 <= 14 / 25 * most_third / least_sd ^ 3) by lra.
  assert (0 < least_sd ^ 3) by (apply pow_lt; lra). assert (least_sd ^ 3 <= sd ^ 3) by (apply pow_incr; lra).
  apply Rmult_le_compat; [lra | apply Rlt_le, Rinv_0_lt_compat; lra | lra | apply Rinv_le_contravar; lra].
Qed.
