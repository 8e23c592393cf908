(* How large are Q and the bias of a ReLU? Bounds on the whole half line, by the signs of derivatives. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Require Import Gaussian Formulas Normal.
Open Scope R_scope.

Section Monotone.
Variables h slope : R -> R.
Variables p q : R.
Hypothesis derivative : forall x, p <= x <= q -> is_derive h x (slope x).

Lemma mean_value : forall x y : R, p <= x <= y -> y <= q -> exists z, x <= z <= y /\ h y - h x = slope z * (y - x).
Proof.
  intros x y H K. destruct (MVT_gen h x y slope) as [z [B E]].
  - intros z Z. rewrite Rmin_left, Rmax_right in Z by lra. apply derivative. lra.
  - intros z Z. rewrite Rmin_left, Rmax_right in Z by lra. apply smooth_pt. eexists. apply derivative. lra.
  - rewrite Rmin_left, Rmax_right in B by lra. exists z. split; assumption.
Qed.

Lemma rises : (forall x, p <= x <= q -> 0 <= slope x) -> forall x y : R, p <= x <= y -> y <= q -> h x <= h y.
Proof.
  intros S x y H K. destruct (mean_value x y H K) as [z [B E]].
  assert (0 <= slope z) by (apply S; lra). assert (0 <= slope z * (y - x)) by (apply Rmult_le_pos; lra). lra.
Qed.

Lemma falls : (forall x, p <= x <= q -> slope x <= 0) -> forall x y : R, p <= x <= y -> y <= q -> h y <= h x.
Proof.
  intros S x y H K. destruct (mean_value x y H K) as [z [B E]].
  assert (slope z <= 0) by (apply S; lra). assert (0 <= - slope z * (y - x)) by (apply Rmult_le_pos; lra). lra.
Qed.
End Monotone.

Lemma falls_to : forall (h slope : R -> R) (p l : R), (forall x, p <= x -> is_derive h x (slope x)) ->
  (forall x, p <= x -> slope x <= 0) -> is_lim h p_infty l -> forall x : R, p <= x -> l <= h x.
Proof.
  intros h slope p l D S L x H.
  apply (is_lim_le_loc h (fun _ => h x) p_infty l (h x)); [| exact L | apply is_lim_const].
  exists x. intros y Y. apply (falls h slope p y); try lra.
  - intros z Z. apply D. lra.
  - intros z Z. apply S. lra.
Qed.

Lemma Q_positive : forall x : R, 0 <= Q x.
Proof.
  intros x. apply (falls_to Q (fun y => - phi y) x 0); try lra.
  - intros y _. apply Q_derive.
  - intros y _. pose proof (phi_positive y). lra.
  - apply Q_limit.
Qed.

Lemma Phi_positive : forall x : R, 0 <= Phi x.
Proof. intros x. rewrite <- Q_opp. apply Q_positive. Qed.

Theorem Q_falls : forall x y : R, x <= y -> Q y <= Q x.
Proof.
  intros x y H. apply (falls Q (fun z => - phi z) x y); try lra.
  - intros z _. apply Q_derive.
  - intros z _. pose proof (phi_positive z). lra.
Qed.

Lemma Q_0 : Q 0 = 1 / 2.
Proof. pose proof (Phi_opp 0) as E. rewrite Ropp_0, Phi_Q in E. lra. Qed.

Lemma gaussian_tail_is_phi : forall t : R, gaussian_tail t = sqrt (2 * PI) / 2 * phi t.
Proof. intros t. unfold gaussian_tail, phi. pose proof sqrt_2PI_positive. field. lra. Qed.

Theorem gaussian_tail_is_above_Q : forall t : R, 0 <= t -> Q t <= gaussian_tail t.
Proof.
  set (h := fun t => gaussian_tail t - Q t).
  set (slope := fun t => phi t * (1 - sqrt (2 * PI) / 2 * t)).
  pose proof sqrt_2PI_positive as P.
  assert (D : forall t, is_derive h t (slope t)).
  { intros t. unfold h. apply is_derive_ext with (fun t => sqrt (2 * PI) / 2 * phi t - Q t).
    { intros u. real_equation. rewrite gaussian_tail_is_phi. ring. }
    evar_last.
    - apply (is_derive_minus (fun t => sqrt (2 * PI) / 2 * phi t) Q);
        [apply (is_derive_scal phi), phi_derive | apply Q_derive].
    - unfold slope, minus, plus, opp; simpl. real_equation. ring. }
  assert (L : is_lim h p_infty 0).
  { apply limit_value with (0 - 0); [| ring]. unfold h. apply is_lim_minus'; [| apply Q_limit].
    apply is_lim_ext with (fun t => sqrt (2 * PI) / 2 * (t ^ 0 * phi t)).
    { intros u. rewrite gaussian_tail_is_phi. ring. }
    apply limit_value with (sqrt (2 * PI) / 2 * 0); [| ring].
    apply (is_lim_scal_l (fun t => t ^ 0 * phi t) (sqrt (2 * PI) / 2) p_infty 0), power_limit. lia. }
  assert (Z : h 0 = 0).
  { unfold h. rewrite Q_0. unfold gaussian_tail. replace (- 0 ^ 2 / 2) with 0 by field. rewrite exp_0. field. }
  intros t H. enough (0 <= h t) by (unfold h in *; lra).
  set (top := 2 / sqrt (2 * PI)).
  assert (T : sqrt (2 * PI) / 2 * top = 1) by (unfold top; field; lra).
  destruct (Rle_lt_dec t top) as [B | B].
  - rewrite <- Z. apply (rises h slope 0 t); try lra; intros u U; [apply D |].
    unfold slope. pose proof (phi_positive u). apply Rmult_le_pos; [lra |]. nra.
  - apply (falls_to h slope top 0); try lra; try assumption; intros u U; [apply D |].
    unfold slope. pose proof (phi_positive u). assert (1 <= sqrt (2 * PI) / 2 * u) by nra. nra.
Qed.

(* The bias of a ReLU. *)
Definition unit_bias (t : R) : R := phi t - t * Q t.

Lemma unit_bias_derive : forall t : R, is_derive unit_bias t (- Q t).
Proof.
  intros t. unfold unit_bias. evar_last.
  - apply (is_derive_minus phi (fun t => t * Q t)); [apply phi_derive |].
    apply (is_derive_mult (fun t => t) Q t 1 (- phi t)); [apply @is_derive_id | apply Q_derive |].
    intros. apply Rmult_comm.
  - unfold minus, plus, opp, mult; simpl. real_equation. ring.
Qed.

Lemma unit_bias_limit : is_lim unit_bias p_infty 0.
Proof.
  apply is_lim_le_le_loc with (fun t => - ((sqrt (2 * PI) / 2) * (t ^ 1 * phi t))) (fun t => t ^ 0 * phi t).
  - exists 0. intros t H. unfold unit_bias. pose proof (phi_positive t). pose proof (Q_positive t).
    pose proof (gaussian_tail_is_above_Q t) as G. rewrite gaussian_tail_is_phi in G.
    assert (t * Q t <= t * (sqrt (2 * PI) / 2 * phi t)) by (apply Rmult_le_compat_l; [lra | apply G; lra]).
    assert (0 <= t * Q t) by (apply Rmult_le_pos; lra). simpl. lra.
  - apply limit_value with (- ((sqrt (2 * PI) / 2) * 0)); [| ring].
    apply (is_lim_opp (fun t => sqrt (2 * PI) / 2 * (t ^ 1 * phi t)) p_infty (Finite (sqrt (2 * PI) / 2 * 0))).
    apply (is_lim_scal_l (fun t => t ^ 1 * phi t) (sqrt (2 * PI) / 2) p_infty 0), power_limit. lia.
  - apply power_limit. lia.
Qed.

Lemma unit_bias_bounds : forall t : R, 0 <= t -> 0 <= unit_bias t <= 1 / sqrt (2 * PI).
Proof.
  intros t H. split.
  - apply (falls_to unit_bias (fun u => - Q u) 0 0); try lra.
    + intros u _. apply unit_bias_derive.
    + intros u _. pose proof (Q_positive u). lra.
    + apply unit_bias_limit.
  - replace (1 / sqrt (2 * PI)) with (unit_bias 0) by (unfold unit_bias; rewrite phi_0; ring).
    apply (falls unit_bias (fun u => - Q u) 0 t); try lra.
    + intros u _. apply unit_bias_derive.
    + intros u _. pose proof (Q_positive u). lra.
Qed.

Lemma relu_bias_is_scaled : forall a sigma : R, 0 < sigma -> relu_bias a sigma = sigma * unit_bias (Rabs a / sigma).
Proof.
  intros a sigma P.
  replace (relu_bias a sigma) with (a * Phi (a / sigma) + sigma * phi (a / sigma) - relu a)
    by (unfold relu_bias, Phi, phi, relu, Rdiv; ring).
  unfold unit_bias, relu. destruct (Rle_lt_dec 0 a) as [H | H].
  - rewrite Rmax_left, (Rabs_pos_eq a), Phi_Q by lra. field. lra.
  - rewrite Rmax_right, (Rabs_left a) by lra. replace (- a / sigma) with (- (a / sigma)) by (field; lra).
    rewrite phi_even, Q_opp. field. lra.
Qed.

Theorem relu_bias_is_between_0_and_its_value_at_0 : forall a sigma : R, 0 < sigma ->
  0 <= relu_bias a sigma <= sigma / sqrt (2 * PI).
Proof.
  intros a sigma P. rewrite relu_bias_is_scaled by exact P.
  assert (0 <= Rabs a / sigma) as H.
  { apply Rmult_le_pos; [apply Rabs_pos | apply Rlt_le, Rinv_0_lt_compat, P]. }
  destruct (unit_bias_bounds _ H) as [A B]. split.
  - apply Rmult_le_pos; lra.
  - replace (sigma / sqrt (2 * PI)) with (sigma * (1 / sqrt (2 * PI))).
    + apply Rmult_le_compat_l; lra.
    + pose proof sqrt_2PI_positive. field. lra.
Qed.

Theorem relu_bias_at_0 : forall sigma : R, 0 < sigma -> relu_bias 0 sigma = sigma / sqrt (2 * PI).
Proof.
  intros sigma P. rewrite relu_bias_is_scaled by exact P. rewrite Rabs_R0. unfold unit_bias.
  replace (0 / sigma) with 0 by (field; lra). rewrite phi_0. pose proof sqrt_2PI_positive. field. lra.
Qed.

Theorem relu_bias_is_even : forall a sigma : R, 0 < sigma -> relu_bias (- a) sigma = relu_bias a sigma.
Proof. intros a sigma P. rewrite !relu_bias_is_scaled, Rabs_Ropp by exact P. reflexivity. Qed.

Theorem relu_bias_falls : forall a b sigma : R, 0 < sigma -> 0 <= a <= b -> relu_bias b sigma <= relu_bias a sigma.
Proof.
  intros a b sigma P H. rewrite !relu_bias_is_scaled, !Rabs_pos_eq by lra.
  pose proof (Rinv_0_lt_compat _ P) as I.
  assert (0 <= a / sigma) by (apply Rmult_le_pos; lra).
  assert (a / sigma <= b / sigma) by (apply Rmult_le_compat_r; lra).
  apply Rmult_le_compat_l; [lra |]. apply (falls unit_bias (fun u => - Q u) (a / sigma) (b / sigma)); try lra.
  - intros u _. apply unit_bias_derive.
  - intros u _. pose proof (Q_positive u). lra.
Qed.

(* With the noise: the bias has the slope phi(a/sigma) in sigma, so that it rises, and the slope rises, too. *)
Lemma relu_bias_slope_in_noise : forall a sigma : R, 0 < sigma ->
  is_derive (relu_bias a) sigma (phi (a / sigma)).
Proof.
  intros a sigma P.
  apply is_derive_ext with (fun sigma => a * Phi (a / sigma) + sigma * phi (a / sigma) - relu a).
  { intros s. real_equation. unfold relu_bias, Phi, phi, relu, Rdiv. ring. }
  auto_derive.
  - repeat split; try lra; eexists; [apply Phi_derive | apply phi_derive].
  - change (a * / sigma) with (a / sigma).
    rewrite (is_derive_unique (fun x : R => Phi x) _ _ (Phi_derive (a / sigma))).
    rewrite (is_derive_unique (fun x : R => phi x) _ _ (phi_derive (a / sigma))). field. lra.
Qed.

Lemma phi_falls : forall x y : R, x ^ 2 <= y ^ 2 -> phi y <= phi x.
Proof.
  intros x y H. unfold phi. apply Rmult_le_compat_r.
  - apply Rlt_le, Rinv_0_lt_compat, sqrt_2PI_positive.
  - apply exp_monotone. lra.
Qed.

Lemma slope_in_noise_rises : forall a s t : R, 0 < s <= t -> phi (a / s) <= phi (a / t).
Proof.
  intros a s t H. apply phi_falls. unfold Rdiv. rewrite !Rpow_mult_distr.
  apply Rmult_le_compat_l; [apply pow2_ge_0 |]. apply pow_incr. split.
  - apply Rlt_le, Rinv_0_lt_compat. lra.
  - apply Rinv_le_contravar; lra.
Qed.

Theorem relu_bias_is_enclosed : forall a low s high : R, 0 < low -> low <= s <= high ->
  relu_bias a low + phi (a / low) * (s - low) <= relu_bias a s <= relu_bias a low + phi (a / high) * (s - low).
Proof.
  intros a low s high P H.
  destruct (mean_value (relu_bias a) (fun s => phi (a / s)) low s) with (x := low) (y := s) as [v [B E]]; try lra.
  - intros v V. apply relu_bias_slope_in_noise. lra.
  - assert (phi (a / low) <= phi (a / v)) by (apply slope_in_noise_rises; lra).
    assert (phi (a / v) <= phi (a / high)) by (apply slope_in_noise_rises; lra).
    assert (0 <= s - low) by lra. split; nra.
Qed.
