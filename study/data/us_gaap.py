"""Names of us-gaap elements, grouped by unit and by period type.

The names are from yearly editions of the *US GAAP Financial Reporting Taxonomy* (FASB), which the
SEC accepts; some are retired in the newest edition. Units and period types (at a date, or over a
period) are also the taxonomy's. Its definitions are not copied. The generator in
:mod:`study.data.xbrl` writes ``unitRef`` and ``contextRef`` from these groups.
"""

import re


def _names(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_CASH = "CashCashEquivalentsRestrictedCashAndRestrictedCashEquivalents"
_AWARD = "ShareBasedCompensationArrangementByShareBasedPaymentAwardFairValueAssumptions"

# Monetary amounts at a date: the balance sheet and its notes.
BALANCES = _names(
    """
    Assets AssetsCurrent AssetsNoncurrent Cash CashAndCashEquivalentsAtCarryingValue
    CashCashEquivalentsRestrictedCashAndRestrictedCashEquivalents RestrictedCash
    RestrictedCashCurrent RestrictedCashNoncurrent RestrictedCashAndCashEquivalents
    ShortTermInvestments LongTermInvestments MarketableSecuritiesCurrent
    MarketableSecuritiesNoncurrent EquityMethodInvestments AvailableForSaleSecuritiesDebtSecurities
    AccountsReceivableNetCurrent AccountsNotesAndLoansReceivableNetCurrent
    AllowanceForDoubtfulAccountsReceivableCurrent OtherReceivablesNetCurrent IncomeTaxesReceivable
    NotesReceivableNet InventoryNet InventoryGross InventoryFinishedGoods InventoryWorkInProcess
    InventoryRawMaterials PrepaidExpenseCurrent PrepaidExpenseAndOtherAssetsCurrent
    OtherAssetsCurrent OtherAssetsNoncurrent OtherAssets PropertyPlantAndEquipmentGross
    PropertyPlantAndEquipmentNet
    AccumulatedDepreciationDepletionAndAmortizationPropertyPlantAndEquipment
    OperatingLeaseRightOfUseAsset FinanceLeaseRightOfUseAsset Goodwill
    IntangibleAssetsNetExcludingGoodwill FiniteLivedIntangibleAssetsGross
    FiniteLivedIntangibleAssetsNet FiniteLivedIntangibleAssetsAccumulatedAmortization
    IndefiniteLivedIntangibleAssetsExcludingGoodwill DeferredIncomeTaxAssetsNet
    DeferredTaxAssetsGross DeferredTaxAssetsNet DeferredTaxAssetsValuationAllowance
    DeferredTaxAssetsOperatingLossCarryforwards DeferredTaxAssetsOther
    ContractWithCustomerAssetNetCurrent ContractWithCustomerAssetNetNoncurrent
    CapitalizedContractCostNetCurrent CapitalizedContractCostNetNoncurrent
    DerivativeFairValueOfDerivativeAsset Liabilities LiabilitiesCurrent LiabilitiesNoncurrent
    LiabilitiesAndStockholdersEquity AccountsPayableCurrent AccountsPayableTradeCurrent
    AccountsPayableAndAccruedLiabilitiesCurrent AccruedLiabilitiesCurrent AccruedIncomeTaxesCurrent
    AccruedIncomeTaxesNoncurrent EmployeeRelatedLiabilitiesCurrent InterestPayableCurrent
    DividendsPayableCurrent TaxesPayableCurrent ShortTermBorrowings CommercialPaper LineOfCredit
    LongTermDebt LongTermDebtCurrent LongTermDebtNoncurrent LongTermDebtAndCapitalLeaseObligations
    LongTermDebtAndCapitalLeaseObligationsCurrent DebtInstrumentCarryingAmount
    DebtInstrumentFaceAmount ConvertibleNotesPayable NotesPayable LongTermDebtFairValue
    OperatingLeaseLiability OperatingLeaseLiabilityCurrent OperatingLeaseLiabilityNoncurrent
    FinanceLeaseLiability FinanceLeaseLiabilityCurrent FinanceLeaseLiabilityNoncurrent
    ContractWithCustomerLiability ContractWithCustomerLiabilityCurrent
    ContractWithCustomerLiabilityNoncurrent DeferredIncomeTaxLiabilities
    DeferredIncomeTaxLiabilitiesNet DeferredTaxLiabilitiesPropertyPlantAndEquipment
    DeferredTaxLiabilitiesOther OtherLiabilitiesCurrent OtherLiabilitiesNoncurrent OtherLiabilities
    PensionAndOtherPostretirementDefinedBenefitPlansLiabilitiesNoncurrent
    DefinedBenefitPlanBenefitObligation DefinedBenefitPlanFairValueOfPlanAssets
    DefinedBenefitPlanFundedStatusOfPlan DefinedBenefitPlanAccumulatedBenefitObligation
    AssetRetirementObligation LitigationReserveCurrent LossContingencyAccrualAtCarryingValue
    ProductWarrantyAccrual RestructuringReserve SelfInsuranceReserve StockholdersEquity
    StockholdersEquityIncludingPortionAttributableToNoncontrollingInterest MinorityInterest
    CommonStockValue PreferredStockValue AdditionalPaidInCapital AdditionalPaidInCapitalCommonStock
    RetainedEarningsAccumulatedDeficit AccumulatedOtherComprehensiveIncomeLossNetOfTax
    TreasuryStockValue TreasuryStockCommonValue UnrecognizedTaxBenefits
    UnrecognizedTaxBenefitsThatWouldImpactEffectiveTaxRate LettersOfCreditOutstandingAmount
    LineOfCreditFacilityMaximumBorrowingCapacity LineOfCreditFacilityRemainingBorrowingCapacity
    RevenueRemainingPerformanceObligation StockRepurchaseProgramAuthorizedAmount1
    StockRepurchaseProgramRemainingAuthorizedRepurchaseAmount1
    LongTermDebtMaturitiesRepaymentsOfPrincipalInNextTwelveMonths
    LongTermDebtMaturitiesRepaymentsOfPrincipalInYearTwo
    LongTermDebtMaturitiesRepaymentsOfPrincipalInYearThree LesseeOperatingLeaseLiabilityPaymentsDue
    LesseeOperatingLeaseLiabilityPaymentsDueNextTwelveMonths
    LesseeOperatingLeaseLiabilityUndiscountedExcessAmount
    FiniteLivedIntangibleAssetsAmortizationExpenseNextTwelveMonths
    FiniteLivedIntangibleAssetsAmortizationExpenseYearTwo AssetsFairValueDisclosure
    LiabilitiesFairValueDisclosure UndistributedEarningsOfForeignSubsidiaries
    FinancingReceivableAllowanceForCreditLosses DeferredFinanceCostsNet Deposits Land
    """
)

# Monetary amounts over a period: income, comprehensive income, cash flows and their notes.
FLOWS = _names(
    f"""
    Revenues RevenueFromContractWithCustomerExcludingAssessedTax
    RevenueFromContractWithCustomerIncludingAssessedTax CostOfRevenue CostOfGoodsAndServicesSold
    GrossProfit OperatingExpenses OperatingIncomeLoss CostsAndExpenses
    SellingGeneralAndAdministrativeExpense GeneralAndAdministrativeExpense
    SellingAndMarketingExpense MarketingExpense AdvertisingExpense ResearchAndDevelopmentExpense
    ResearchAndDevelopmentExpenseExcludingAcquiredInProcessCost RestructuringCharges
    AssetImpairmentCharges GoodwillImpairmentLoss AmortizationOfIntangibleAssets Depreciation
    DepreciationDepletionAndAmortization DepreciationAndAmortization InterestExpense
    InterestExpenseDebt InvestmentIncomeInterest InterestIncomeOther InterestIncomeExpenseNet
    NonoperatingIncomeExpense OtherNonoperatingIncomeExpense IncomeLossFromEquityMethodInvestments
    GainsLossesOnExtinguishmentOfDebt ForeignCurrencyTransactionGainLossBeforeTax
    IncomeLossFromContinuingOperationsBeforeIncomeTaxesExtraordinaryItemsNoncontrollingInterest
    IncomeLossFromContinuingOperationsBeforeIncomeTaxesDomestic
    IncomeLossFromContinuingOperationsBeforeIncomeTaxesForeign IncomeTaxExpenseBenefit
    CurrentIncomeTaxExpenseBenefit CurrentFederalTaxExpenseBenefit
    CurrentStateAndLocalTaxExpenseBenefit CurrentForeignTaxExpenseBenefit
    DeferredIncomeTaxExpenseBenefit DeferredFederalIncomeTaxExpenseBenefit
    DeferredForeignIncomeTaxExpenseBenefit IncomeLossFromContinuingOperations
    IncomeLossFromDiscontinuedOperationsNetOfTaxAttributableToReportingEntity ProfitLoss
    NetIncomeLoss NetIncomeLossAttributableToNoncontrollingInterest
    NetIncomeLossAvailableToCommonStockholdersBasic
    NetIncomeLossAvailableToCommonStockholdersDiluted ComprehensiveIncomeNetOfTax
    OtherComprehensiveIncomeLossNetOfTax
    ComprehensiveIncomeNetOfTaxIncludingPortionAttributableToNoncontrollingInterest
    NetCashProvidedByUsedInOperatingActivities NetCashProvidedByUsedInInvestingActivities
    NetCashProvidedByUsedInFinancingActivities
    NetCashProvidedByUsedInOperatingActivitiesContinuingOperations
    {_CASH}PeriodIncreaseDecreaseIncludingExchangeRateEffect
    IncreaseDecreaseInAccountsReceivable IncreaseDecreaseInInventories
    IncreaseDecreaseInAccountsPayable IncreaseDecreaseInOtherOperatingCapitalNet
    IncreaseDecreaseInAccruedLiabilities IncreaseDecreaseInContractWithCustomerLiability
    IncreaseDecreaseInPrepaidDeferredExpenseAndOtherAssets ShareBasedCompensation
    AllocatedShareBasedCompensationExpense
    EmployeeServiceShareBasedCompensationTaxBenefitFromCompensationExpense OtherNoncashIncomeExpense
    PaymentsToAcquirePropertyPlantAndEquipment PaymentsToAcquireProductiveAssets
    PaymentsToAcquireInvestments PaymentsToAcquireBusinessesNetOfCashAcquired
    PaymentsToAcquireIntangibleAssets PaymentsForProceedsFromOtherInvestingActivities
    ProceedsFromSaleOfPropertyPlantAndEquipment ProceedsFromSaleMaturityAndCollectionsOfInvestments
    ProceedsFromIssuanceOfLongTermDebt RepaymentsOfLongTermDebt ProceedsFromIssuanceOfCommonStock
    ProceedsFromRepaymentsOfShortTermDebt ProceedsFromRepaymentsOfCommercialPaper
    PaymentsForRepurchaseOfCommonStock PaymentsOfDividends PaymentsOfDividendsCommonStock
    PaymentsRelatedToTaxWithholdingForShareBasedCompensation PaymentsOfDebtIssuanceCosts
    ProceedsFromPaymentsForOtherFinancingActivities ProceedsFromStockOptionsExercised
    InterestPaidNet IncomeTaxesPaid IncomeTaxesPaidNet InterestCostsCapitalized OperatingLeaseCost
    ShortTermLeaseCost VariableLeaseCost LeaseCost OperatingLeasePayments
    FinanceLeaseRightOfUseAssetAmortization FinanceLeaseInterestExpense
    FinanceLeasePrincipalPayments SubleaseIncome
    RightOfUseAssetObtainedInExchangeForOperatingLeaseLiability
    RightOfUseAssetObtainedInExchangeForFinanceLeaseLiability DefinedContributionPlanCostRecognized
    DefinedBenefitPlanNetPeriodicBenefitCost DefinedBenefitPlanServiceCost
    DefinedBenefitPlanInterestCost DefinedBenefitPlanExpectedReturnOnPlanAssets
    PensionAndOtherPostretirementBenefitExpense PensionAndOtherPostretirementBenefitContributions
    ContractWithCustomerLiabilityRevenueRecognized AssetRetirementObligationAccretionExpense
    EnvironmentalRemediationExpense BusinessCombinationIntegrationRelatedCosts
    BusinessCombinationAcquisitionRelatedCosts GainLossOnSaleOfPropertyPlantEquipment
    GainLossOnSaleOfBusiness EquityMethodInvestmentDividendsOrDistributions
    UnrecognizedTaxBenefitsIncreasesResultingFromPriorPeriodTaxPositions
    UnrecognizedTaxBenefitsDecreasesResultingFromPriorPeriodTaxPositions
    ProvisionForDoubtfulAccounts AmortizationOfFinancingCosts ProvisionForLoanLeaseAndOtherLosses
    NoninterestIncome NoninterestExpense InterestAndDividendIncomeOperating DividendsCommonStockCash
    TreasuryStockValueAcquiredCostMethod
    """
)

# US dollars per share.
PER_SHARE_FLOWS = _names(
    """
    EarningsPerShareBasic EarningsPerShareDiluted CommonStockDividendsPerShareDeclared
    CommonStockDividendsPerShareCashPaid IncomeLossFromContinuingOperationsPerBasicShare
    IncomeLossFromContinuingOperationsPerDilutedShare
    """
)
PER_SHARE_BALANCES = (
    "CommonStockParOrStatedValuePerShare",
    "PreferredStockParOrStatedValuePerShare",
)

# Numbers of shares.
SHARE_FLOWS = _names(
    """
    WeightedAverageNumberOfSharesOutstandingBasic WeightedAverageNumberOfDilutedSharesOutstanding
    AntidilutiveSecuritiesExcludedFromComputationOfEarningsPerShareAmount
    StockRepurchasedDuringPeriodShares
    IncrementalCommonSharesAttributableToShareBasedPaymentArrangements
    """
)
SHARE_BALANCES = _names(
    """
    CommonStockSharesAuthorized CommonStockSharesIssued CommonStockSharesOutstanding
    PreferredStockSharesAuthorized PreferredStockSharesIssued TreasuryStockCommonShares
    TreasuryStockShares
    """
)

# Fractions of one.
RATE_FLOWS = _names(
    f"""
    EffectiveIncomeTaxRateContinuingOperations
    EffectiveIncomeTaxRateReconciliationAtFederalStatutoryIncomeTaxRate
    EffectiveIncomeTaxRateReconciliationStateAndLocalIncomeTaxes
    EffectiveIncomeTaxRateReconciliationForeignIncomeTaxRateDifferential
    {_AWARD}ExpectedVolatilityRate
    {_AWARD}RiskFreeInterestRate
    """
)
RATE_BALANCES = _names(
    """
    OperatingLeaseWeightedAverageDiscountRatePercent FinanceLeaseWeightedAverageDiscountRatePercent
    DefinedBenefitPlanAssumptionsUsedCalculatingBenefitObligationDiscountRate
    DebtInstrumentInterestRateStatedPercentage
    """
)

INSTANTS = frozenset(BALANCES + PER_SHARE_BALANCES + SHARE_BALANCES + RATE_BALANCES)
ELEMENTS = (
    *(*BALANCES, *FLOWS, *PER_SHARE_FLOWS, *PER_SHARE_BALANCES),
    *(*SHARE_FLOWS, *SHARE_BALANCES, *RATE_FLOWS, *RATE_BALANCES),
)


def label(element: str) -> str:
    """The name in words, without a version number: ``InventoryNet`` -> ``Inventory Net``."""
    return re.sub(
        r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", element.rstrip("0123456789")
    )
