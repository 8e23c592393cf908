(* What is erfc, and why does it fall to 0? The Gaussian integral, proved by differentiating area^2 + rest. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Open Scope R_scope.

(* The error function, DLMF 7.2.1 and 7.2.2. The formulas of Python know the normal distribution through erfc. *)
Definition erf (x : R) : R := 2 / sqrt PI * RInt (fun t => exp (- t ^ 2)) 0 x.
Definition erfc (x : R) : R := 1 - erf x.

(* Coquelicot states equalities in its own structures, which `ring` and `field` do not recognise as R. *)
Ltac real_equation := match goal with |- ?l = ?r => change (@eq R l r) end.

Lemma smooth : forall (f : R -> R) x, ex_derive f x -> continuous f x.
Proof. intros f x. apply (@ex_derive_continuous R_AbsRing R_NormedModule). Qed.

Lemma smooth_pt : forall (f : R -> R) x, ex_derive f x -> continuity_pt f x.
Proof. intros f x H. apply derivable_continuous_pt, ex_derive_Reals_0, H. Qed.

Lemma exp_monotone : forall x y : R, x <= y -> exp x <= exp y.
Proof. intros x y [H | ->]; [left; apply exp_increasing, H | right; reflexivity]. Qed.

Definition bell (t : R) : R := exp (- t ^ 2).

Lemma bell_continuous : forall t, continuous bell t.
Proof.
  intros t. apply smooth.
  unfold bell. auto_derive. exact I.
Qed.

Lemma bell_integrable : forall a b, ex_RInt bell a b.
Proof. intros. apply (@ex_RInt_continuous R_CompleteNormedModule). intros. apply bell_continuous. Qed.

Definition area (x : R) : R := RInt bell 0 x.

Lemma area_derive : forall x : R, is_derive area x (bell x).
Proof.
  intros x. unfold area. apply (is_derive_RInt bell _ 0).
  - apply filter_forall. intros y. apply (@RInt_correct R_CompleteNormedModule), bell_integrable.
  - apply bell_continuous.
Qed.

Definition slice (x t : R) : R := exp (- x ^ 2 * (1 + t ^ 2)) / (1 + t ^ 2).
Definition rest (x : R) : R := RInt (slice x) 0 1.

Lemma slice_positive : forall t, 0 < 1 + t ^ 2.
Proof. intros. nra. Qed.

Lemma slice_integrable : forall x : R, ex_RInt (slice x) 0 1.
Proof.
  intros x. apply (@ex_RInt_continuous R_CompleteNormedModule). intros t _.
  apply smooth.
  unfold slice. auto_derive. pose proof (slice_positive t); simpl in *; lra.
Qed.

Lemma slice_derive : forall x t : R, is_derive (fun u => slice u t) x (- 2 * x * exp (- x ^ 2 * (1 + t ^ 2))).
Proof.
  intros x t. unfold slice. pose proof (slice_positive t). auto_derive; [simpl in *; lra |].
  simpl in *. field. lra.
Qed.

Lemma rest_derive : forall x : R, is_derive rest x (- 2 * bell x * area x).
Proof.
  intros x.
  replace (- 2 * bell x * area x) with (RInt (fun t => Derive (fun u => slice u t) x) 0 1).
  - apply (is_derive_RInt_param slice 0 1 x).
    + apply filter_forall. intros y t _. eexists. apply slice_derive.
    + intros t _. apply continuity_2d_pt_ext with (fun u v => - 2 * u * exp (- u ^ 2 * (1 + v ^ 2))).
      * intros u v. symmetry. apply is_derive_unique, slice_derive.
      * apply continuity_2d_pt_mult.
        -- apply continuity_2d_pt_mult; [apply continuity_2d_pt_const | apply continuity_2d_pt_id1].
        -- apply (continuity_1d_2d_pt_comp exp (fun u v => - u ^ 2 * (1 + v ^ 2)) x t).
           ++ apply derivable_continuous_pt, derivable_pt_exp.
           ++ apply continuity_2d_pt_mult.
              ** apply (continuity_1d_2d_pt_comp (fun u => - u ^ 2) (fun u _ => u) x t); [| apply continuity_2d_pt_id1].
                 apply smooth_pt.
                 auto_derive. exact I.
              ** apply (continuity_1d_2d_pt_comp (fun u => 1 + u ^ 2) (fun _ v => v) x t);
                   [| apply continuity_2d_pt_id2].
                 apply smooth_pt.
                 auto_derive. exact I.
    + apply filter_forall. intros. apply slice_integrable.
  - apply is_RInt_unique. apply is_RInt_ext with (fun t => (- 2 * bell x) * (x * bell (x * t + 0))).
    + intros t _. rewrite (is_derive_unique (fun u : R => slice u t) x _ (slice_derive x t)). unfold bell.
      replace (- x ^ 2 * (1 + t ^ 2)) with (- x ^ 2 + - (x * t + 0) ^ 2) by ring. rewrite exp_plus. real_equation. ring.
    + apply (is_RInt_scal (fun t => x * bell (x * t + 0)) 0 1 (- 2 * bell x) (area x)).
      apply (is_RInt_comp_lin bell x 0 0 1 (area x)).
      replace (x * 0 + 0) with 0 by ring. replace (x * 1 + 0) with x by ring.
      apply (@RInt_correct R_CompleteNormedModule), bell_integrable.
Qed.

Lemma area_squared : forall x : R, area x ^ 2 + rest x = PI / 4.
Proof.
  intros x.
  assert (D : forall y, is_derive (fun u => area u ^ 2 + rest u) y 0).
  { intros y. evar_last.
    - apply (is_derive_plus (fun u => area u ^ 2) rest).
      + apply (is_derive_pow area 2 y _ (area_derive y)).
      + apply rest_derive.
    - unfold plus; simpl. ring. }
  transitivity (area 0 ^ 2 + rest 0).
  - destruct (MVT_gen (fun u => area u ^ 2 + rest u) 0 x (fun _ => 0)) as [c [_ E]].
    + intros. apply D.
    + intros. apply smooth_pt.
      eexists. apply D.
    + lra.
  - unfold area. rewrite RInt_point. unfold zero; simpl.
    unfold rest. rewrite (RInt_ext _ (fun t => / (1 + t ^ 2))).
    + replace (RInt (fun t => / (1 + t ^ 2)) 0 1) with (atan 1 - atan 0).
      * rewrite atan_1, atan_0. simpl. ring.
      * symmetry. apply is_RInt_unique. apply (is_RInt_derive atan (fun t => / (1 + t ^ 2))).
        -- intros t _. evar_last; [apply is_derive_atan | ]. reflexivity || (unfold Rsqr; field; nra).
        -- intros t _. apply smooth. auto_derive.
           pose proof (slice_positive t); simpl in *; lra.
    + intros t _. unfold slice. replace (- 0 ^ 2 * (1 + t ^ 2)) with 0 by ring. rewrite exp_0. real_equation. field.
      pose proof (slice_positive t); lra.
Qed.

Lemma rest_bounds : forall x : R, 0 <= rest x <= exp (- x ^ 2).
Proof.
  intros x. unfold rest. split.
  - apply RInt_ge_0; [lra | apply slice_integrable |]. intros t _. unfold slice.
    apply Rlt_le, Rdiv_lt_0_compat; [apply exp_pos | apply slice_positive].
  - replace (exp (- x ^ 2)) with (RInt (fun _ => exp (- x ^ 2)) 0 1).
    + apply RInt_le; [lra | apply slice_integrable | apply ex_RInt_const |]. intros t _. unfold slice.
      apply Rle_trans with (exp (- x ^ 2 * (1 + t ^ 2))).
      * apply Rmult_le_reg_r with (1 + t ^ 2); [apply slice_positive |]. unfold Rdiv.
        rewrite Rmult_assoc, Rinv_l by (pose proof (slice_positive t); lra).
        pose proof (exp_pos (- x ^ 2 * (1 + t ^ 2))). nra.
      * apply exp_monotone. assert (0 <= x ^ 2 * t ^ 2) by nra. nra.
    + rewrite RInt_const. unfold scal; simpl. unfold mult; simpl. ring.
Qed.

(* The Gaussian integral. *)
Lemma erf_limit : is_lim erf p_infty 1.
Proof.
  assert (L : is_lim (fun x => PI / 4 - rest x) p_infty (PI / 4 - 0)).
  { apply (is_lim_minus' (fun _ => PI / 4) rest); [apply is_lim_const |].
    apply is_lim_le_le_loc with (fun _ => 0) (fun x => exp (- x)).
    - exists 1. intros x H. destruct (rest_bounds x) as [A B]. split; [exact A |].
      apply Rle_trans with (1 := B). apply exp_monotone. nra.
    - apply is_lim_const.
    - apply (is_lim_comp exp Ropp p_infty 0 m_infty).
      + apply is_lim_exp_m.
      + apply (is_lim_opp (fun x => x) p_infty p_infty), is_lim_id.
      + exists 0. discriminate. }
  rewrite Rminus_0_r in L.
  assert (S : is_lim (fun x => sqrt (PI / 4 - rest x)) p_infty (sqrt (PI / 4))).
  { apply (is_lim_comp_continuous (fun x => PI / 4 - rest x) sqrt p_infty (PI / 4) L). apply continuous_sqrt. }
  apply is_lim_ext_loc with (fun x => 2 / sqrt PI * sqrt (PI / 4 - rest x)).
  - exists 0. intros x H. unfold erf. f_equal. rewrite <- (area_squared x).
    replace (area x ^ 2 + rest x - rest x) with (Rsqr (area x)) by (unfold Rsqr; ring).
    apply sqrt_Rsqr. unfold area. apply RInt_ge_0; [lra | apply bell_integrable |].
    intros t _. apply Rlt_le, exp_pos.
  - replace (Finite 1) with (Rbar_mult (2 / sqrt PI) (sqrt (PI / 4))).
    + apply is_lim_scal_l, S.
    + pose proof PI_RGT_0. simpl. f_equal. rewrite sqrt_div by lra.
      replace (sqrt 4) with 2 by (symmetry; apply sqrt_lem_1; lra).
      field. apply Rgt_not_eq, sqrt_lt_R0. lra.
Qed.

Lemma erf_derive : forall x : R, is_derive erf x (2 / sqrt PI * exp (- x ^ 2)).
Proof. intros x. apply (is_derive_scal area x (2 / sqrt PI)), area_derive. Qed.

Lemma erf_odd : forall x : R, erf (- x) = - erf x.
Proof.
  intros x. change (2 / sqrt PI * area (- x) = - (2 / sqrt PI * area x)).
  replace (area (- x)) with (- area x); [ring |]. symmetry. apply is_RInt_unique.
  replace (- x) with (- 1 * x + 0) by ring.
  assert (H : is_RInt (fun t => - 1 * bell (- 1 * t + 0)) 0 x (RInt bell (- 1 * 0 + 0) (- 1 * x + 0))).
  { apply (is_RInt_comp_lin bell (- 1) 0 0 x). apply (@RInt_correct R_CompleteNormedModule), bell_integrable. }
  replace (- area x) with (RInt bell (- 1 * 0 + 0) (- 1 * x + 0)).
  - replace (- 1 * 0 + 0) with 0 by ring. apply (@RInt_correct R_CompleteNormedModule), bell_integrable.
  - rewrite <- (is_RInt_unique _ _ _ _ H). apply is_RInt_unique.
    apply is_RInt_ext with (fun t => - bell t).
    + intros t _. unfold bell. replace (- (- 1 * t + 0) ^ 2) with (- t ^ 2) by ring. real_equation. ring.
    + apply (is_RInt_opp bell 0 x (area x)). apply (@RInt_correct R_CompleteNormedModule), bell_integrable.
Qed.
